"use strict";
// ROC curves and reliability of one finding, every model in its colour and dash; numbers come from the page's data.
(() => {
  const root = document.getElementById("curves");
  const data = JSON.parse(document.getElementById("data").textContent).curves;
  if (!root || !data.length) return;
  const $ = (id) => root.querySelector(`#${id}`), SVG = "http://www.w3.org/2000/svg";
  const DASH = ["", "7 3", "2 3", "9 3 2 3", "4 2", "1 2", "12 4", "6 2 1 2 1 2"];
  const colour = (i) => `var(--model-${i % 8})`;
  const el = (name, attributes, text) => {
    const e = document.createElementNS(SVG, name);
    for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
    if (text !== undefined) e.textContent = text;
    return e;
  };
  const SIZE = 320, LEFT = 46, BOTTOM = 40, TOP = 8, RIGHT = 12;
  const x = (v, [a, b]) => LEFT + ((v - a) / (b - a)) * (SIZE - LEFT - RIGHT), y = (v) => SIZE - BOTTOM - v * (SIZE - BOTTOM - TOP);

  function frame(svg, range, across, up) {
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${SIZE} ${SIZE}`);
    for (let i = 0; i <= 4; i++) {
      const v = range[0] + ((range[1] - range[0]) * i) / 4, digits = range[1] - range[0] < 0.1 ? 3 : 2;
      svg.append(el("line", { class: "grid", x1: x(v, range), x2: x(v, range), y1: y(0), y2: y(1) }), el("line", { class: "grid", x1: x(range[0], range), x2: x(range[1], range), y1: y(i / 4), y2: y(i / 4) }));
      svg.append(el("text", { x: x(v, range), y: y(0) + 15, "text-anchor": "middle" }, v.toFixed(digits)), el("text", { x: LEFT - 6, y: y(i / 4) + 4, "text-anchor": "end" }, (i / 4).toFixed(2)));
    }
    svg.append(el("text", { x: (LEFT + SIZE - RIGHT) / 2, y: SIZE - 6, "text-anchor": "middle" }, across));
    svg.append(el("text", { x: -(TOP + SIZE - BOTTOM) / 2, y: 12, "text-anchor": "middle", transform: "rotate(-90)" }, up));
  }

  function line(svg, points, range, i, faint) {
    const d = points.map(([a, b], n) => `${n ? "L" : "M"}${x(a, range).toFixed(1)} ${y(b).toFixed(1)}`).join("");
    svg.append(el("path", { d, fill: "none", stroke: colour(i), "stroke-width": faint ? 1.5 : 3, "stroke-dasharray": DASH[i % 8], opacity: faint ? 0.75 : 1 }));
  }

  function draw() {
    const task = data[$("curve-task").value], finding = task.findings[$("curve-finding").value], chosen = $("curve-model").value;
    const seen = task.models.map((name, i) => ({ name, i: task.numbers[i], of: finding.models[name] })).filter((m) => m.of);
    const roc = $("roc"), bins = $("reliability");
    frame(roc, [0, 1], "false positive rate", "true positive rate (sensitivity)");
    roc.append(el("line", { class: "chance", x1: x(0, [0, 1]), y1: y(0), x2: x(1, [0, 1]), y2: y(1) }));
    for (const m of seen.sort((a, b) => (a.name === chosen) - (b.name === chosen))) line(roc, m.of.roc[0].map((v, n) => [v, m.of.roc[1][n]]), [0, 1], m.i, m.name !== chosen);
    const own = seen.find((m) => m.name === chosen), note = $("reliability-note");
    const rate = own ? own.of.positive / (own.of.positive + own.of.negative) : 0;
    if (own) {
      const xs = own.of.bins.map((b) => b[0]), low = Math.min(...xs), high = Math.max(...xs), pad = (high - low) * 0.06 || 0.01;
      const range = own.of.probability ? [0, 1] : [low - pad, high + pad];
      frame(bins, range, own.of.probability ? "predicted probability" : "score (no probability)", "share with the finding");
      if (own.of.probability) bins.append(el("line", { class: "chance", x1: x(0, range), y1: y(0), x2: x(1, range), y2: y(1) }));
      else bins.append(el("line", { class: "chance", x1: x(range[0], range), y1: y(rate), x2: x(range[1], range), y2: y(rate) }));
      line(bins, own.of.bins, range, own.i, true);
      for (const [at, share, from, to] of own.of.bins) bins.append(el("line", { x1: x(at, range), x2: x(at, range), y1: y(from), y2: y(to), stroke: colour(own.i), "stroke-width": 2, opacity: 0.5 }), el("circle", { cx: x(at, range), cy: y(share), r: 4, fill: colour(own.i) }));
      note.textContent = own.of.probability
        ? `Dotted: perfect calibration. ${own.of.error === null ? "" : `Expected calibration error, 15 bins of equal width: ${own.of.error.toFixed(3)}. `}Shown: bins of equally many cases with 95 % Wilson intervals.`
        : "These scores are no probabilities, so calibration cannot be judged: bins of equally many cases show only whether a higher score means the finding more often. Dotted: how often it is there. Bars: 95 % Wilson intervals.";
    } else {
      bins.replaceChildren();
      note.textContent = `${chosen} has no scores of this finding.`;
    }
    const rows = seen.sort((a, b) => a.i - b.i).map((m) => {
      const row = document.createElement("li"), swatch = document.createElementNS(SVG, "svg");
      swatch.setAttribute("viewBox", "0 0 34 8"); swatch.setAttribute("class", "swatch"); swatch.setAttribute("aria-hidden", "true");
      swatch.append(el("line", { x1: 0, x2: 34, y1: 4, y2: 4, stroke: colour(m.i), "stroke-width": m.name === chosen ? 4 : 2, "stroke-dasharray": DASH[m.i % 8] }));
      row.append(swatch, ` ${m.name}: ${m.of.auroc} (${m.of.positive} with, ${m.of.negative} without)`);
      return row;
    });
    $("curve-legend").replaceChildren(...rows);
    roc.setAttribute("aria-label", `ROC curves of ${finding.name}: ` + rows.map((r) => r.textContent.trim()).join("; "));
    bins.setAttribute("aria-label", `reliability of ${finding.name} under ${chosen}`);
    root.dataset.shown = `${task.name}, ${finding.name}, ${chosen}`;
  }

  function fill(select, names, keep) {
    const was = keep && select.selectedOptions[0]?.textContent;
    select.replaceChildren(...names.map(([text, value]) => new Option(text, value)));
    const again = [...select.options].find((o) => o.textContent === was);
    if (again) select.value = again.value;
    select.parentElement.hidden = names.length < 2;
  }

  function task() {
    const t = data[$("curve-task").value];
    fill($("curve-finding"), t.findings.map((f, i) => [f.name, i]), true);
    fill($("curve-model"), t.models.map((m) => [m, m]), true);
    draw();
  }
  fill($("curve-task"), data.map((t, i) => [t.name, i]), false);
  $("curve-task").addEventListener("change", task);
  $("curve-finding").addEventListener("change", draw);
  $("curve-model").addEventListener("change", draw);
  task();
})();
