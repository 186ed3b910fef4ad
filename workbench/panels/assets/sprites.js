// Pictures: a tile of a sheet as a background position, or a picture that came with an answer. Whole multiples keep pixel art crisp.
window.workbench.sprites = (() => {
  const wb = window.workbench;
  const source = (sheet) => sheet.data || wb.fileUrl(sheet.path);

  const scaled = (tile, wanted) => Math.max(...tile) > wanted ? wanted / Math.max(...tile) : Math.max(1, Math.round(wanted / Math.max(...tile)));
  // A sheet is { path or data, tile: [width, height], columns, count }; `wanted` is the longer side in pixels of the page.
  const paint = (node, sheet, index, wanted) => {
    const scale = scaled(sheet.tile, wanted), [width, height] = sheet.tile.map((side) => side * scale);
    const rows = Math.ceil(sheet.count / sheet.columns);
    const style = {
      width: `${width}px`, height: `${height}px`,
      backgroundImage: `url("${source(sheet)}")`,
      backgroundSize: `${sheet.columns * width}px ${rows * height}px`,
      backgroundPosition: `${-(index % sheet.columns) * width}px ${-Math.floor(index / sheet.columns) * height}px`,
      imageRendering: scale >= 1 ? "pixelated" : "auto",
    };
    for (const [name, value] of Object.entries(style)) if (node.style[name] !== value) node.style[name] = value;
  };
  const picture = (sheet, index, wanted, label, className = "pic") => {
    const node = wb.make("div", className);
    node.setAttribute("role", "img");
    node.setAttribute("aria-label", label);
    if (sheet) paint(node, sheet, index, wanted);
    return node;
  };
  // A sheet is decoded before it is shown, so that no blank frame comes between two of them.
  const ready = async (sheet) => {
    if (!sheet) return;
    const image = new Image();
    image.src = source(sheet);
    await image.decode().catch(() => undefined);
  };
  return { paint, picture, ready };
})();
