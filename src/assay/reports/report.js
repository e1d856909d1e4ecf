"use strict";
(() => {
  const config = { responsive: true, displayModeBar: false };
  const plots = new Map();
  for (const script of document.querySelectorAll("script[data-figure]")) {
    const plot = document.getElementById(script.dataset.figure);
    const figure = JSON.parse(script.textContent);
    if (plot.clientWidth < 480) figure.layout.xaxis.nticks = 4;
    Plotly.newPlot(plot, figure.data, figure.layout, config);
    plots.set(plot.id, plot);
  }

  const curves = [...plots.values()].filter((plot) => plot.layout.meta?.axes);
  for (const input of document.querySelectorAll("input[name=axis]")) {
    input.addEventListener("change", () => {
      for (const plot of curves) {
        const x = plot.data.map((trace) => trace.meta.x[input.value]);
        const title = plot.layout.meta.axes[input.value];
        const exponentformat = input.value === "flops" ? "power" : "B";
        Plotly.update(plot, { x }, {
          "xaxis.title.text": title,
          "xaxis.exponentformat": exponentformat,
          "xaxis.autorange": true,
        });
      }
    });
  }
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      for (const plot of curves) {
        const own = plot.data.flatMap((trace, i) => (trace.meta.arm === Number(button.dataset.arm) ? [i] : []));
        if (own.length) Plotly.restyle(plot, { visible: shown }, own);
      }
    });
  }

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not(.long)")) details.open = true;
    for (const plot of plots.values()) Plotly.relayout(plot, { width: Number(plot.dataset.print ?? 680) });
  });
  addEventListener("afterprint", () => {
    for (const plot of plots.values()) Plotly.relayout(plot, { width: null, autosize: true });
  });
})();
