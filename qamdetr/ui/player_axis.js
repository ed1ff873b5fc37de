// The part of the recording in view: zoom, pan, ticks, and the overview strip that says where one is.

const TICK_PIXELS = 64;
const DRAG_PIXELS = 5; // less than this is a press
const WHEEL_ZOOM = 0.0025; // per pixel of the wheel
const LINE_PIXELS = 16; // wheels that count in lines

const span = () => range.to - range.from;
const isWhole = () => span() >= view.duration - 1e-6;
const at = (seconds) => `${((100 * (seconds - range.from)) / span()).toFixed(4)}%`;
const wide = (seconds) => `${((100 * seconds) / span()).toFixed(4)}%`;
const secondAt = (clientX) => {
  const box = plot.getBoundingClientRect();
  return range.from + ((clientX - box.left) / box.width) * span();
};

let waiting = 0;

function setRange(next) {
  if (next.from === range.from && next.to === range.to) return;
  range = next;
  if (!waiting) waiting = requestAnimationFrame(drawRange);
}

function drawRange() {
  waiting = 0;
  if (!view.duration) return;
  placeWave();
  for (const svg of plot.querySelectorAll(".qd-curve")) svg.setAttribute("viewBox", `${range.from} 0 ${span()} 100`);
  placeLanes();
  drawAxis();
  drawOverview();
  showBand(bandRow);
  showPosition();
}

function drawAxis() {
  const most = Math.max(2, Math.floor(plot.clientWidth / (TICK_PIXELS * textScale())));
  const step = tickStep(span(), most);
  axis.replaceChildren();
  grid.replaceChildren();
  for (let index = Math.ceil(range.from / step); index * step <= range.to; index += 1) {
    const second = index * step;
    const line = make("i");
    line.style.left = at(second);
    grid.append(line);
    const pixels = ((second - range.from) / span()) * plot.clientWidth;
    if (second > 0 && (pixels < 20 * textScale() || plot.clientWidth - pixels < 24 * textScale())) continue;
    const tick = make("span", second === 0 ? "qd-first" : "", clock(second, step < 1 ? 1 : 0));
    tick.style.left = at(second);
    axis.append(tick);
  }
}

function drawOverview() {
  overview.hidden = isWhole();
  further.disabled = whole.disabled = isWhole();
  closer.disabled = span() <= Math.min(LEAST_SECONDS, view.duration) + 1e-6;
  overviewWindow.style.left = `${(100 * range.from) / view.duration}%`;
  overviewWindow.style.width = `${(100 * span()) / view.duration}%`;
  overview.setAttribute("aria-valuemax", view.duration.toFixed(1));
  overview.setAttribute("aria-valuenow", range.from.toFixed(1));
  overview.setAttribute("aria-valuetext", `${clock(range.from, 1)} to ${clock(range.to, 1)}`);
}

/** A mark for each moment that the lanes show, on the strip of the whole recording. */
function drawOverviewMarks() {
  overviewMarks.replaceChildren();
  answers.forEach((lane, number) => {
    for (const row of shownRows(lane)) {
      const mark = make("i", row.guess || !row.likely ? "qd-unlikely" : "");
      mark.style.left = `${(100 * row.start) / view.duration}%`;
      mark.style.width = `${(100 * (row.end - row.start)) / view.duration}%`;
      mark.style.top = `${(100 * number) / answers.length}%`;
      mark.style.height = `${100 / answers.length}%`;
      overviewMarks.append(mark);
    }
  });
}

// ---- zoom and pan by buttons and keys ----

function middle() {
  const focused = document.activeElement?.dataset?.start;
  const second = focused === undefined || !root.contains(document.activeElement) ? audio.currentTime : Number(focused);
  return second > range.from && second < range.to ? second : (range.from + range.to) / 2;
}

function zoomBy(factor) {
  setRange(zoomed(range, factor, middle(), view.duration));
}

function showWhole() {
  setRange({ from: 0, to: view.duration });
}

function panBy(share) {
  setRange(panned(range, share * span(), view.duration));
}

// ---- wheel: with Ctrl (or a pinch on a touchpad) it zooms, sideways it pans, else the page scrolls ----

plot.addEventListener(
  "wheel",
  (event) => {
    const unit = event.deltaMode === 1 ? LINE_PIXELS : 1;
    const sideways = event.shiftKey && !event.deltaX ? event.deltaY : event.deltaX;
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      setRange(zoomed(range, Math.exp(-event.deltaY * unit * WHEEL_ZOOM), secondAt(event.clientX), view.duration));
    } else if (!isWhole() && Math.abs(sideways) > (event.shiftKey ? 0 : Math.abs(event.deltaY))) {
      event.preventDefault();
      setRange(panned(range, ((sideways * unit) / plot.clientWidth) * span(), view.duration));
    }
  },
  { passive: false },
);

// ---- pointers: a press seeks, a drag pans (or seeks while all is in view), two fingers zoom ----

const pointers = new Map(); // id -> x in pixels
let grip = null; // { x, second, range, moved, pressed } since the first pointer went down

const dragging = () => grip !== null && grip.moved;

function fingers() {
  const [one, two] = [...pointers.values()];
  return { apart: Math.max(Math.abs(one - two), 1), centre: (one + two) / 2 };
}

plot.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  pointers.set(event.pointerId, event.clientX);
  if (pointers.size === 1) grip = { x: event.clientX, range, moved: false, pressed: event.target.closest("button") !== null };
  else if (pointers.size === 2) grip = { ...fingers(), range, second: secondAt(fingers().centre), moved: true, pinching: true };
});
plot.addEventListener("pointermove", (event) => {
  if (!grip || !pointers.has(event.pointerId)) return;
  pointers.set(event.pointerId, event.clientX);
  if (grip.pinching) {
    if (pointers.size === 2) setRange(zoomed(grip.range, fingers().apart / grip.apart, grip.second, view.duration));
    return;
  }
  const pixels = event.clientX - grip.x;
  if (!grip.moved && Math.abs(pixels) < DRAG_PIXELS) return;
  if (!grip.moved) plot.setPointerCapture(event.pointerId); // from here on it is no press on a moment
  grip.moved = true;
  if (isWhole()) seek(secondAt(event.clientX));
  else setRange(panned(grip.range, (-pixels / plot.clientWidth) * span(), view.duration));
});
plot.addEventListener("pointerup", (event) => {
  if (grip && !grip.moved && !grip.pressed) seek(secondAt(event.clientX));
  release(event);
});
plot.addEventListener("pointercancel", release);
plot.addEventListener("pointerleave", (event) => {
  if (grip && !grip.moved) release(event);
});

function release(event) {
  pointers.delete(event.pointerId);
  if (pointers.size === 0) grip = null;
}

function moveOverview(event) {
  const box = overview.getBoundingClientRect();
  const second = ((event.clientX - box.left) / box.width) * view.duration;
  setRange(placed(second - span() / 2, span(), view.duration));
}

overview.addEventListener("pointerdown", (event) => {
  overview.setPointerCapture(event.pointerId);
  moveOverview(event);
});
overview.addEventListener("pointermove", (event) => {
  if (overview.hasPointerCapture(event.pointerId)) moveOverview(event);
});
