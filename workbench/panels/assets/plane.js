// A square of the plane on a canvas: shades, dots, paths and rings, sharp at any pixel density and in both themes.
window.workbench.plane = (box, view = 4) => {
  const wb = window.workbench, { colour } = wb;
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
  canvas.setAttribute("role", "img");
  box.prepend(canvas);
  let scene = () => undefined, waiting = 0;

  const at = (x, y) => [(x / view + 1) / 2 * canvas.width, (1 - y / view) / 2 * canvas.height];
  const where = (event) => {
    const frame = canvas.getBoundingClientRect(), clip = (value) => Math.max(-view, Math.min(view, value));
    return [clip(((event.clientX - frame.left) / frame.width * 2 - 1) * view), clip((1 - (event.clientY - frame.top) / frame.height * 2) * view)];
  };
  const ratio = () => window.devicePixelRatio || 1;

  const paint = () => {
    waiting = 0;
    const frame = box.getBoundingClientRect();
    if (!frame.width) return;
    const [width, height] = [frame.width, frame.height].map((side) => Math.round(side * ratio()));
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    pen.clearRect(0, 0, width, height);
    scene();
  };
  const draw = (next) => {
    if (next) scene = next;
    if (!waiting) waiting = requestAnimationFrame(paint);
  };
  new ResizeObserver(() => draw()).observe(box);
  new MutationObserver(() => draw()).observe(document.body, { attributes: true, attributeFilter: ["class"] });

  const dots = (points, name, size, alpha) => {
    const side = size * ratio();
    pen.fillStyle = colour(name);
    pen.globalAlpha = alpha;
    for (let i = 0; i < points.length; i += 2) {
      const [x, y] = at(points[i], points[i + 1]);
      pen.fillRect(x - side / 2, y - side / 2, side, side);
    }
    pen.globalAlpha = 1;
  };
  const line = (points, name, width, { alpha = 1, dash = [] } = {}) => {
    pen.strokeStyle = colour(name);
    pen.lineWidth = width * ratio();
    pen.globalAlpha = alpha;
    pen.lineJoin = pen.lineCap = "round";
    pen.setLineDash(dash.map((part) => part * ratio()));
    pen.beginPath();
    points.forEach(([x, y], i) => pen[i ? "lineTo" : "moveTo"](...at(x, y)));
    if (points.length === 1) pen.lineTo(...at(points[0][0] + 1e-3, points[0][1]));
    pen.stroke();
    pen.setLineDash([]);
    pen.globalAlpha = 1;
  };
  const ring = (x, y, radius, name, { alpha = 1, fill = false, dash = [] } = {}) => {
    pen.beginPath();
    pen.arc(...at(x, y), radius / view / 2 * canvas.width, 0, 2 * Math.PI);
    pen.globalAlpha = alpha;
    pen.setLineDash(dash.map((part) => part * ratio()));
    pen.lineWidth = 1.6 * ratio();
    pen.strokeStyle = pen.fillStyle = colour(name);
    fill ? pen.fill() : pen.stroke();
    pen.setLineDash([]);
    pen.globalAlpha = 1;
  };
  // Values 0..255 of a square, rows from the top, in one colour of the page.
  const tinted = (values, name) => {
    const sheet = document.createElement("canvas"), side = Math.sqrt(values.length);
    sheet.width = sheet.height = side;
    const brush = sheet.getContext("2d");
    brush.fillStyle = colour(name);
    brush.fillRect(0, 0, side, side);
    const image = brush.getImageData(0, 0, side, side);
    for (let i = 0; i < values.length; i += 1) image.data[4 * i + 3] = values[i];
    brush.putImageData(image, 0, 0);
    return sheet;
  };
  const shade = (sheet, alpha) => {
    pen.globalAlpha = alpha;
    pen.imageSmoothingEnabled = true;
    pen.drawImage(sheet, 0, 0, canvas.width, canvas.height);
    pen.globalAlpha = 1;
  };
  // A histogram over the whole width: bars for what there is, a line for what there should be; both shares of the whole.
  const bars = (shares, wanted) => {
    const top = 1.15 * Math.max(...wanted, ...shares), step = canvas.width / shares.length, y = (share) => canvas.height * (1 - share / top);
    pen.fillStyle = colour("--accent");
    pen.globalAlpha = 0.55;
    shares.forEach((share, i) => pen.fillRect(i * step + 0.5, y(share), Math.max(1, step - 1), canvas.height - y(share)));
    pen.globalAlpha = 1;
    pen.strokeStyle = colour("--good");
    pen.lineWidth = 2 * ratio();
    pen.beginPath();
    wanted.forEach((share, i) => { pen.lineTo(i * step, y(share)); pen.lineTo((i + 1) * step, y(share)); });
    pen.stroke();
  };

  return { canvas, draw, dots, line, ring, tinted, shade, bars, where, say: (text) => wb.setAttr(canvas, "aria-label", text) };
};

// Numbers that travel as text.
window.workbench.unpack = {
  bytes: (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0)),
  points(text, reach) {
    const whole = new Int16Array(this.bytes(text).buffer);
    return Float32Array.from(whole, (value) => value / 32767 * reach);
  },
};
