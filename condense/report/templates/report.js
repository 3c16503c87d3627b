(() => {
  "use strict";
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // --- copying a command -----------------------------------------------------------------------------
  for (const button of all("button.copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const code = button.previousElementSibling;
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch {
        getSelection().selectAllChildren(code);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
  }

  // --- sorting the layer tables ----------------------------------------------------------------------
  function sort(table, header) {
    const heads = [...header.parentElement.children];
    const column = heads.indexOf(header);
    const first = header.querySelector("button").dataset.first || "descending";
    const other = first === "descending" ? "ascending" : "descending";
    const order = header.getAttribute("aria-sort") === first ? other : first;
    for (const head of heads) head.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const key = (row) => Number(row.children[column].dataset.sort ?? row.children[column].textContent);
    const place = (row) => Number(row.children[0].dataset.sort);
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      if (isNaN(key(a)) || isNaN(key(b))) return isNaN(key(a)) - isNaN(key(b)) || place(a) - place(b);
      return sign * (key(a) - key(b)) || place(a) - place(b);
    });
    table.tBodies[0].append(...rows);
  }
  for (const table of all("table.layers")) {
    for (const button of all("thead button", table)) {
      button.addEventListener("click", () => sort(table, button.closest("th")));
    }
  }

  // --- charts: colours by name, resolved for the skin that is on ----------------------------------------
  const config = { displayModeBar: false, displaylogo: false, responsive: true, showSendToCloud: false,
    plotlyServerURL: "", scrollZoom: false, doubleClick: false, staticPlot: false };
  const figures = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paper = document.createElement("div");
  paper.className = "skin-light";
  paper.hidden = true;
  document.body.append(paper);
  let printing = false;
  let drawn = false;

  function palette() {
    const style = getComputedStyle(printing ? paper : root);
    const read = (name) => style.getPropertyValue(`--${name}`).trim();
    return (value) => {
      if (value === "@scale") return [0, 1, 2, 3, 4, 5].map((i) => [i / 5, read(`s${i}`)]);
      if (value === "@clear") return "rgba(0,0,0,0)";
      const [name, alpha] = value.slice(1).split("/");
      const found = read(name);
      if (!alpha) return found;
      const [r, g, b] = [1, 3, 5].map((i) => parseInt(found.slice(i, i + 2), 16));
      return `rgba(${r},${g},${b},${alpha})`;
    };
  }
  function resolved(value, ink, key = "") {
    if (Array.isArray(value)) return value.map((item) => (item && typeof item === "object" ? resolved(item, ink) : item));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolved(v, ink, k)]));
    }
    return typeof value === "string" && value[0] === "@" && /(color|scale|family)$/.test(key) ? ink(value) : value;
  }
  function draw(figure, ink, place = document.getElementById(figure.id)) {
    const layout = resolved(figure.layout, ink);
    if (printing) Object.assign(layout, { width: place.closest(".panels") ? 215 : place.closest("figure.half") ? 325 : 680, height: figure.height * 0.72, autosize: false });
    else layout.autosize = true;
    if (!place.classList.contains("js-plotly-plot")) place.replaceChildren();
    return window.Plotly.react(place, resolved(figure.data, ink), layout, config);
  }
  function redraw() {
    if (!drawn) return;
    const ink = palette();
    for (const figure of figures) draw(figure, ink);
  }
  async function inflate() {
    const holder = document.getElementById("plotly-gzip");
    if (!holder || window.Plotly) return;
    const bytes = Uint8Array.from(atob(holder.textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    holder.remove();
  }
  async function start() {
    if (!figures.length) return;
    try {
      await inflate();
      if (!window.Plotly) throw new Error("no plotly");
      for (const figure of figures) {
        await draw(figure, palette());
        await new Promise((done) => setTimeout(done));
      }
      drawn = true;
      root.dataset.charts = "ready";
      dark.addEventListener("change", redraw);
    } catch {
      root.dataset.charts = "failed"; // the static drawings and the tables remain
    }
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();

  // --- printing: the light skin, every explanation open ---------------------------------------------------
  let closed = [];
  addEventListener("beforeprint", () => {
    printing = true;
    closed = all("details:not([open])");
    for (const item of closed) item.open = true;
    redraw();
  });
  addEventListener("afterprint", () => {
    printing = false;
    for (const item of closed) item.open = false;
    redraw();
  });
})();
