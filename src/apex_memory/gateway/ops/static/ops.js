"use strict";
// Draws the charts of the page, and fetches their data again every ten seconds while the page is visible.
(() => {
  const SECONDS = 10;
  const LEAST_SPAN = 300; // seconds that a chart shows at least
  const charts = new Map();
  const source = document.body.dataset.source;
  const freshness = document.getElementById("freshness");
  const dark = matchMedia("(prefers-color-scheme: dark)");

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function digits(value) {
    return Number(value.toPrecision(3)).toString();
  }

  function scaled(value, names) {
    let size = 0;
    while (Math.abs(value) >= 1000 && size < names.length - 1) {
      value /= 1000;
      size += 1;
    }
    return `${digits(value)} ${names[size]}`.trim();
  }

  function seconds(value) {
    if (value === 0) return "0 s";
    const size = Math.abs(value);
    if (size < 1) return `${digits(value * 1000)} ms`;
    if (size < 120) return `${digits(value)} s`;
    if (size < 7200) return `${digits(value / 60)} min`;
    if (size < 172800) return `${digits(value / 3600)} h`;
    return `${digits(value / 86400)} d`;
  }

  function written(value, unit) {
    if (value === null || value === undefined) return "–";
    if (unit === "seconds") return seconds(value);
    if (unit === "bytes") return scaled(value, ["B", "kB", "MB", "GB", "TB"]);
    if (unit === "share") return `${digits(value * 100)} %`;
    const text = scaled(value, ["", "k", "M", "G"]);
    return text + ({ "per second": "/s", "per hour": "/h" }[unit] || "");
  }

  function clock(time) {
    return new Date(time * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false });
  }

  // Of stacked lines each is drawn as the sum of itself and of those below it, the topmost first.
  function columns(panel) {
    const values = panel.series.map((series) => series.values);
    if (!panel.stacked) return [panel.times, ...values];
    const sums = [];
    let below = panel.times.map(() => 0);
    for (const line of values) {
      below = below.map((sum, n) => sum + (line[n] || 0));
      sums.push(below.map((sum, n) => (panel.series.some((s) => s.values[n] !== null) ? sum : null)));
    }
    return [panel.times, ...sums.reverse()];
  }

  function options(panel, width) {
    const grid = { stroke: color("--line"), width: 1 };
    const axis = { stroke: color("--soft"), grid, ticks: grid, font: "11px system-ui" };
    const lines = panel.series.map((series, n) => {
      const stroke = color(`--c${n}`);
      return {
        label: series.label || panel.id,
        stroke,
        width: 1.5,
        points: { show: panel.times.length < 3 },
        fill: panel.stacked ? `color-mix(in srgb, ${stroke} 40%, ${color("--card")})` : undefined,
      };
    });
    if (panel.stacked) lines.reverse();
    return {
      width,
      height: 180,
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, points: { size: 6 } },
      scales: { x: { range: (_, low, high) => [Math.min(low, high - LEAST_SPAN), high] }, y: { range: (_, low, high) => [Math.min(0, low ?? 0), (high || 0) > 0 ? high * 1.1 : 1] } },
      axes: [
        { ...axis, size: 28, space: 60, incrs: [60, 120, 300, 600, 1800], values: (_, times) => times.map(clock) },
        { ...axis, size: 64, space: 34, values: (_, marks) => marks.map((mark) => written(mark, panel.unit)) },
      ],
      series: [{}, ...lines],
      hooks: { setCursor: [(plot) => showLegend(panel, plot.cursor.idx)] },
    };
  }

  // As `SeriesData.last`: what ended a minute ago or more has no value now.
  function last(values) {
    return values.slice(-4).findLast((value) => value !== null) ?? null;
  }

  function showLegend(panel, index) {
    const list = document.querySelector(`#${CSS.escape(panel.id)} .legend`);
    list.replaceChildren(
      ...panel.series.map((series, n) => {
        const row = document.createElement("li");
        const mark = document.createElement("i");
        mark.className = `c${n}`;
        const name = document.createElement("span");
        name.textContent = series.label;
        name.title = series.label;
        const value = document.createElement("b");
        const there = index === null || index === undefined ? last(series.values) : series.values[index];
        value.textContent = written(there, panel.unit);
        row.append(mark, name, value);
        return row;
      }),
    );
    if (panel.left_out) {
      const more = document.createElement("li");
      more.className = "more";
      more.textContent = `and ${panel.left_out} more`;
      list.append(more);
    }
  }

  function showChart(panel) {
    const card = document.getElementById(panel.id);
    const place = card.querySelector(".plot");
    place.querySelector(".empty").textContent = panel.reason || (panel.series.length ? "" : "no data yet");
    const known = charts.get(panel.id);
    const shape = JSON.stringify([panel.series.map((series) => series.label), dark.matches]);
    showLegend(panel, null);
    if (!panel.series.length) {
      if (known) known.plot.destroy();
      charts.delete(panel.id);
    } else if (known && known.shape === shape) {
      known.panel = Object.assign(known.panel, panel);
      known.plot.setData(columns(panel));
    } else {
      if (known) known.plot.destroy();
      const plot = new uPlot(options(panel, place.clientWidth), columns(panel), place);
      charts.set(panel.id, { plot, panel, shape });
    }
  }

  function showStat(panel) {
    const card = document.getElementById(panel.id);
    card.className = `stat ${panel.level}`;
    card.querySelector(".value").textContent = panel.value;
  }

  async function refresh() {
    if (document.hidden) return;
    try {
      const response = await fetch(source, { cache: "no-store" });
      if (!response.ok) throw new Error(`status ${response.status}`);
      for (const panel of (await response.json()).panels) {
        if (panel.kind === "stat") showStat(panel);
        else showChart(panel);
      }
      freshness.textContent = `updated ${new Date().toLocaleTimeString([], { hour12: false })}`;
      freshness.className = "";
    } catch (error) {
      freshness.textContent = `not updated: ${error.message}`;
      freshness.className = "stale";
    }
  }

  new ResizeObserver(() => {
    for (const { plot } of charts.values()) {
      plot.setSize({ width: plot.root.parentElement.clientWidth, height: 180 });
    }
  }).observe(document.querySelector(".charts"));
  document.addEventListener("visibilitychange", refresh);
  dark.addEventListener("change", refresh);
  setInterval(refresh, SECONDS * 1000);
  refresh();
})();
