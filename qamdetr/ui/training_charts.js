// Curves of a run, drawn as SVG from small JSON. Words reach the page through textContent alone.

const SVG_NS = "http://www.w3.org/2000/svg";
const CHART = { width: 520, height: 210, left: 46, right: 12, top: 20, bottom: 26 };

function make(tag, name = "", text = null) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== null) node.textContent = text;
  return node;
}

function svg(tag, attributes, text = null) {
  const node = document.createElementNS(SVG_NS, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  return node;
}

function clockLeft(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  const hours = Math.floor(seconds / 3600);
  return `${hours} h ${Math.round((seconds - 3600 * hours) / 60)} min`;
}

/** Round steps of 1, 2 or 5 that divide a range into at most `most` parts. */
function niceStep(range, most, least = 0) {
  const rough = Math.max(range / most, least, 1e-9);
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough - 1e-12);
}

function limits(series) {
  const values = series.flatMap((one) => [...one.points, ...(one.live ? [one.live] : [])].map((point) => point[1]));
  if (!values.length) return [0, 1, 0.5];
  const high = Math.max(...values);
  let low = Math.min(...values, high);
  if (low < 0.6 * high) low = 0;
  const step = niceStep(high - low || high || 1, 4);
  const top = Math.ceil(high / step - 1e-9) * step;
  return [Math.max(0, Math.floor(low / step + 1e-9) * step), top > low ? top : low + step, step];
}

/** One chart: title, legend with the value under the pointer (or the newest), axes and curves. */
function drawChart(chart) {
  const box = make("figure", "qt-chart");
  const known = chart.series.filter((one) => one.points.length || one.live);
  const caption = make("figcaption");
  caption.append(make("strong", "", chart.title));
  const legend = make("span", "qt-legend");
  caption.append(legend);
  box.append(caption);
  if (!known.length) {
    box.append(make("p", "qt-none", "The first point comes when the first epoch ends."));
    return box;
  }
  const [low, high, step] = limits(known);
  const { width, height, left, right, top, bottom } = CHART;
  const x = (epoch) => left + (epoch / chart.epochs) * (width - left - right);
  const y = (value) => height - bottom - ((value - low) / (high - low)) * (height - top - bottom);
  const shown = (value) => (high - low < 3 ? value.toFixed(2) : value.toFixed(1)) + (chart.unit ? ` ${chart.unit}` : "");
  const label = `${chart.title}: ${known.map((one) => `${one.name} ${shown((one.points.at(-1) ?? one.live)[1])}`).join(", ")}`;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  drawAxes(picture, { low, high, step, x, y, epochs: chart.epochs });
  if (chart.best) {
    picture.append(svg("line", { class: "qt-best", x1: x(chart.best), x2: x(chart.best), y1: top, y2: height - bottom }));
    const late = x(chart.best) > width - 30;
    // Above the curves: the best of them reaches the top.
    picture.append(svg("text", { class: "qt-best-text", x: x(chart.best), y: top - 7, "text-anchor": late ? "end" : "middle" }, "best"));
  }
  known.forEach((one) => drawCurve(picture, one, chart.series.indexOf(one), x, y));
  const pointer = svg("line", { class: "qt-pointer", y1: top, y2: height - bottom, x1: 0, x2: 0, visibility: "hidden" });
  picture.append(pointer);
  const tell = (epoch) => {
    legend.replaceChildren(
      ...known.map((one) => {
        const at = epoch === null ? one.points.at(-1) ?? one.live : one.points.find((point) => point[0] === epoch);
        const entry = make("span", `qt-key qt-series-${chart.series.indexOf(one)}`);
        entry.append(make("i"), `${one.name} ${at ? shown(at[1]) : "–"}`);
        return entry;
      }),
      make("span", "qt-epoch", epoch === null ? "" : `epoch ${epoch}`),
    );
  };
  tell(null);
  followPointer(picture, pointer, known, chart.epochs, x, tell);
  box.append(picture);
  return box;
}

function drawAxes(picture, { low, high, step, x, y, epochs }) {
  const { width, height, right, left, bottom } = CHART;
  for (let value = low; value <= high + step / 1000; value += step) {
    picture.append(svg("line", { class: "qt-grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    picture.append(svg("text", { x: left - 7, y: y(value) + 4, "text-anchor": "end" }, Number(value.toPrecision(6)).toString()));
  }
  const each = niceStep(epochs, 7, 1);
  for (let epoch = 0; epoch <= epochs; epoch += each) {
    const end = epoch === epochs ? "end" : "middle";
    picture.append(svg("text", { x: x(epoch), y: height - bottom + 18, "text-anchor": end }, epoch === 0 ? "epoch 0" : String(epoch)));
  }
}

function drawCurve(picture, one, number, x, y) {
  const group = svg("g", { class: `qt-series-${number}` });
  const path = one.points.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" ");
  if (one.points.length > 1) group.append(svg("polyline", { points: path }));
  if (one.points.length < 40) for (const point of one.points) group.append(svg("circle", { cx: x(point[0]), cy: y(point[1]), r: 2.6 }));
  if (one.live) {
    const from = one.points.at(-1);
    if (from) group.append(svg("line", { class: "qt-live", x1: x(from[0]), y1: y(from[1]), x2: x(one.live[0]), y2: y(one.live[1]) }));
    group.append(svg("circle", { class: "qt-live-dot", cx: x(one.live[0]), cy: y(one.live[1]), r: 4 }));
  }
  picture.append(group);
}

function followPointer(picture, pointer, known, epochs, x, tell) {
  const all = [...new Set(known.flatMap((one) => one.points.map((point) => point[0])))];
  picture.addEventListener("pointermove", (event) => {
    if (!all.length) return;
    const box = picture.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * CHART.width;
    const epoch = all.reduce((one, two) => (Math.abs(x(two) - at) < Math.abs(x(one) - at) ? two : one));
    pointer.setAttribute("x1", x(epoch));
    pointer.setAttribute("x2", x(epoch));
    pointer.setAttribute("visibility", "visible");
    tell(epoch);
  });
  picture.addEventListener("pointerleave", () => {
    pointer.setAttribute("visibility", "hidden");
    tell(null);
  });
}
