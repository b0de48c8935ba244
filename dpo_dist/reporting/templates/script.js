"use strict";
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const dark = () => root.style.colorScheme
    ? root.style.colorScheme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const name = () => { theme.textContent = dark() ? "Light page" : "Dark page"; };
  theme.hidden = false;
  name();
  theme.addEventListener("click", () => {
    root.style.colorScheme = dark() ? "light" : "dark";
    name();
  });

  const form = document.getElementById("filters");
  if (!form) return;
  form.hidden = false;
  const list = document.getElementById("samples");
  const shown = document.getElementById("shown");
  const samples = [...list.children];
  const order = new Map(samples.map((sample, place) => [sample, place]));
  const texts = new Map();
  const text = (sample) => {
    if (!texts.has(sample)) texts.set(sample, sample.textContent.toLowerCase());
    return texts.get(sample);
  };
  const rank = (sample) => Number(sample.dataset.rank || Infinity);

  const show = () => {
    const tag = form.elements.tag.value;
    const wanted = form.elements.search.value.trim().toLowerCase();
    let count = 0;
    for (const sample of samples) {
      const fits = (!tag || sample.dataset.tags.split(" ").includes(tag))
        && (!wanted || text(sample).includes(wanted));
      sample.hidden = !fits;
      count += fits;
    }
    shown.textContent = `${count} of ${samples.length} shown`;
  };
  const sort = () => {
    const worst = form.elements.worst.checked;
    const sorted = [...samples].sort((a, b) =>
      (worst ? Math.sign(rank(a) - rank(b)) || 0 : 0) || order.get(a) - order.get(b));
    list.append(...sorted);
  };
  form.addEventListener("input", (event) => {
    if (event.target.name === "worst") sort(); else show();
  });
  form.addEventListener("submit", (event) => event.preventDefault());

  const step = (by) => {
    const visible = [...list.children].filter((sample) => !sample.hidden);
    const at = visible.indexOf(document.activeElement.closest(".sample"));
    const to = visible[at < 0 ? 0 : Math.min(Math.max(at + by, 0), visible.length - 1)];
    if (!to) return;
    to.focus({ preventScroll: true });
    to.scrollIntoView({ block: "start" });
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, select, textarea")) return;
    const within = event.target.closest(".sample");
    const by = { j: 1, k: -1, ArrowRight: within ? 1 : 0, ArrowLeft: within ? -1 : 0 }[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
  });
  show();
})();
