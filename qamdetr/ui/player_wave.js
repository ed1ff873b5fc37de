// The waveform: the overview that came with the recording, and over it, when one is zoomed in, finer columns that the server reads on demand.

const LOOK_WAIT_MS = 150; // a zoom has come to rest
const SVG_HEIGHT = 100;

let fine = null; // { from, to, columns, asked, figure } of the finer columns on the page
let lookTimer = 0;
let looking = false; // one question at a time

/** Columns as steps over [0, seconds]: `[low, high]` in [-1, 1]; each reaches its neighbours, so that the shape never falls apart. */
function steps([low, high], seconds) {
  const x = (column) => ((column * seconds) / low.length).toFixed(5);
  const y = (value) => (SVG_HEIGHT / 2 - 48 * value).toFixed(1);
  const tops = high.map((value, column) => Math.max(value, column ? low[column - 1] : value, low[column] + LEAST_HEIGHT));
  const bottoms = low.map((value, column) => Math.min(value, column ? high[column - 1] : value));
  const there = tops.map((value, column) => `V${y(value)}H${x(column + 1)}`);
  const back = bottoms.map((value, column) => `V${y(value)}H${x(column)}`).reverse();
  return draw("path", { d: `M0,${y(tops[0])}${there.join("")}${back.join("")}Z` });
}

const LEAST_HEIGHT = 0.01; // silence is a line

function stepFigure(peaks, seconds) {
  const svg = draw("svg", { viewBox: `0 0 ${seconds} ${SVG_HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(steps(peaks, seconds));
  return svg;
}

const coarse = draw("svg", { class: "qd-curve qd-coarse", preserveAspectRatio: "none", "aria-hidden": "true" });

function drawWave() {
  coarse.replaceChildren(steps(view.peaks, view.duration));
  overviewWave.replaceChildren(stepFigure(view.peaks, view.duration));
  wave.replaceChildren(coarse);
  fine = null;
}

/** Put what is drawn where the view is, and ask for finer columns where they are missing. */
function placeWave() {
  coarse.style.clipPath = "";
  if (fine) {
    Object.assign(fine.figure.style, { left: at(fine.from), width: wide(fine.to - fine.from) });
    // The overview stands only where there is nothing finer.
    coarse.style.clipPath = outside(at(fine.from), at(fine.to));
  }
  clearTimeout(lookTimer);
  if (view.look && wanted()) lookTimer = setTimeout(look, LOOK_WAIT_MS);
}

const outside = (left, right) =>
  `polygon(evenodd, 0 0, 100% 0, 100% 100%, 0 100%, 0 0, ${left} 0, ${left} 100%, ${right} 100%, ${right} 0, ${left} 0)`;

const wanted = () => closerLook(range, view.duration, view.peaks[0].length, plot.clientWidth, fine);

async function look() {
  const part = wanted();
  if (looking || !part) return;
  looking = true;
  const token = view.look;
  let given = null;
  try {
    given = await server.look({ token, ...part });
  } catch {
    // The overview stays.
  }
  looking = false;
  if (token !== view.look) placeWave(); // another recording; the answer is nobody's
  else if (!given) return; // asked again when the view changes
  else {
    if (range.from >= given.from - 1e-6 && range.to <= given.to + 1e-6) showFine(given, part.columns);
    placeWave(); // the view may have moved on meanwhile
  }
}

function showFine({ from, to, peaks }, asked) {
  fine?.figure.remove();
  const figure = stepFigure(peaks, to - from);
  figure.classList.add("qd-fine");
  figure.dataset.columns = peaks[0].length;
  fine = { from, to, columns: peaks[0].length, asked, figure };
  wave.append(figure);
}
