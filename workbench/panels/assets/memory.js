// What a run would take: its peak part by part against a device, and settings that take less, each a button that sets it.
window.workbench.memory = (page, values) => {
  const wb = window.workbench, GIB = 2 ** 30;
  const gib = (bytes) => `${(bytes / GIB).toFixed(bytes < 10 * GIB ? 2 : 1)} GiB`;
  let asking = 0;

  const bar = (plan) => {
    const [stage] = Object.entries(plan.stages).find(([, bytes]) => bytes === plan.total);
    const own = Object.entries(plan.parts).filter(([, bytes]) => bytes > 0.004 * plan.total);
    const rest = plan.total - own.reduce((sum, [, bytes]) => sum + bytes, 0);
    const shown = [...own, [stage, Math.max(0, rest)]].sort((a, b) => b[1] - a[1]), whole = Math.max(plan.total, plan.device);
    const node = wb.make("div", "wb-stack"), names = wb.make("ul", "wb-parts");
    node.setAttribute("role", "img");
    node.setAttribute("aria-label", `${gib(plan.total)} of ${gib(plan.device)}`);
    shown.forEach(([name, bytes], place) => {
      const part = wb.make("i"), item = wb.make("li", "", `${name} ${gib(bytes)}`);
      part.style.width = `${100 * bytes / whole}%`;
      part.title = `${name}: ${gib(bytes)}`;
      for (const each of [part, item]) each.style.setProperty("--share", `${Math.round(100 - 78 * place / Math.max(1, shown.length - 1))}%`);
      node.append(part);
      names.append(item);
    });
    if (plan.device && plan.device < whole) { const edge = wb.make("b"); edge.style.left = `${100 * plan.device / whole}%`; edge.title = `the device: ${gib(plan.device)}`; node.append(edge); }
    return [node, names, stage];
  };
  const use = (advice) => {
    const [group, field] = [advice.setting.split(".")[0], advice.setting.split(".").slice(1).join(".")];
    const form = page.slot("form"), chosen = form.querySelector(`[name="${group}.name"]`);
    const input = form.querySelector(`[name="${advice.setting}"]`) || (chosen && form.querySelector(`[name="${group}.${chosen.value}.${field}"]`));
    if (!input) return;
    if (input.type === "checkbox") input.checked = Boolean(advice.value); else input.value = String(advice.value);
    input.dispatchEvent(new Event("change", { bubbles: true }));
    const fold = input.closest("details");
    if (fold) fold.open = true;
    predict();
  };
  const show = (plan) => {
    const [node, names, stage] = bar(plan), told = wb.make("p", plan.fits ? "fits" : "over");
    told.textContent = `${plan.fits ? "✓ It fits" : "✕ It does not fit"}: at most ${gib(plan.total)} of ${gib(plan.device)}, ${stage === "step" ? "at the optimizer's step" : `while ${{ update: "updating" }[stage] || stage}`}.`;
    const box = page.slot("memory");
    box.replaceChildren(told, node, names);
    if (!plan.advice.length) return;
    const list = wb.make("div", "wb-row");
    plan.advice.forEach((each, place) => {
      if (each.value === "") return list.append(wb.make("span", "wb-note", plan.advised[place]));
      const button = wb.make("button", "wb-button small", plan.advised[place]);
      button.type = "button";
      button.title = "Set this, and predict again";
      button.addEventListener("click", () => use(each));
      list.append(button);
    });
    box.append(wb.make("p", "wb-note", "What takes less, those first that cost least time:"), list);
  };
  const predict = async () => {
    const turn = ++asking, box = page.slot("memory");
    box.replaceChildren(wb.make("p", "wb-note", "Working it out from the shapes of all that is computed; half a minute for a large model…"));
    const reply = await page.ask("memory", { settings: values(), gib: page.slot("gib").value });
    if (turn !== asking) return;
    if (reply.errors) return box.replaceChildren(wb.make("p", "over", reply.errors.join(" ")));
    show(reply);
  };
  page.root.querySelector('[data-act="memory"]').addEventListener("click", predict);
  return { clear: () => { asking++; page.slot("memory").replaceChildren(); } };
};
