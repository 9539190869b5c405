"use strict";
// What the figures' data attributes are for.  data-tip: a pointer near a mark shows these words.
// data-entry: a click on a legend's entry hides every data-series of that name on the page, a
// double click leaves it alone in its figure.  Without this script the page lacks nothing else.
(() => {
  const REACH = { mouse: 16, touch: 28 }; // px from a mark at which it is meant
  const GAP = 10; // px between a mark and its tip
  const tip = document.getElementById("tip");
  const words = JSON.parse(document.getElementById("tips").textContent);
  const showAll = document.getElementById("all");
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const hidden = new Set();
  let hot = null;

  function nearest(panel, x, y, reach) {
    let best = null;
    let least = reach;
    for (const mark of all("[data-tip]", panel)) {
      const box = mark.getBoundingClientRect();
      if (!box.width && !box.height) continue; // hidden with its series
      const outside = Math.hypot(
        Math.max(box.left - x, 0, x - box.right),
        Math.max(box.top - y, 0, y - box.bottom),
      );
      const centre = Math.hypot((box.left + box.right) / 2 - x, (box.top + box.bottom) / 2 - y);
      const distance = outside + centre / 1000; // marks that overlap: the one whose middle is nearer
      if (distance < least) [best, least] = [mark, distance];
    }
    return best;
  }

  function show(mark) {
    if (mark === hot) return;
    hot?.classList.remove("hot");
    hot = mark;
    tip.hidden = !mark;
    if (!mark) return;
    mark.classList.add("hot");
    tip.textContent = words[mark.dataset.tip];
    const box = mark.getBoundingClientRect();
    const { width, height } = tip.getBoundingClientRect();
    const wide = document.documentElement.clientWidth;
    const left = Math.min(Math.max((box.left + box.right - width) / 2, GAP), wide - width - GAP);
    const above = box.top - height - GAP;
    tip.style.left = `${left}px`;
    tip.style.top = `${above < GAP ? box.bottom + GAP : above}px`;
  }

  for (const panel of all(".panel")) {
    const point = (event) => {
      const reach = REACH[event.pointerType] ?? REACH.mouse;
      show(nearest(panel, event.clientX, event.clientY, reach));
    };
    panel.addEventListener("pointermove", point);
    panel.addEventListener("pointerdown", point);
    panel.addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "touch") show(null); // a finger that is lifted has left, too
    });
  }
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.closest(".panel")) show(null);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") show(null);
  });
  addEventListener("scroll", () => show(null), { passive: true });

  function draw() {
    for (const part of all("[data-series]")) {
      part.classList.toggle("off", hidden.has(part.dataset.series));
    }
    for (const entry of all("[data-entry][role]")) {
      const off = hidden.has(entry.dataset.entry);
      entry.classList.toggle("off", off);
      entry.setAttribute("aria-pressed", String(!off));
    }
    showAll.hidden = !hidden.size;
    show(null);
  }

  function toggle(name) {
    if (!hidden.delete(name)) hidden.add(name);
    draw();
  }

  function alone(name, panel) {
    const others = all("[data-entry][role]", panel).map((entry) => entry.dataset.entry);
    hidden.delete(name);
    for (const other of others) if (other !== name) hidden.add(other);
    draw();
  }

  const series = new Set(all("[data-series]").map((part) => part.dataset.series));
  for (const entry of all("[data-entry]")) {
    const name = entry.dataset.entry;
    if (!series.has(name)) continue; // e.g. what a hollow mark means
    entry.setAttribute("role", "button");
    entry.setAttribute("aria-label", name);
    if (entry.querySelector("text")) entry.setAttribute("tabindex", "0");
    entry.addEventListener("click", () => toggle(name));
    entry.addEventListener("dblclick", () => alone(name, entry.closest(".panel")));
    entry.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      toggle(name);
    });
  }
  showAll.addEventListener("click", () => {
    hidden.clear();
    draw();
  });
  draw();
  document.documentElement.classList.add("js");
})();
