// The player of one recording and its moments. Gradio runs this file as the body of a function that is given `element`, `props`
// and `watch` (retrieve_tab.py); `props.value` is the view that presenters.py documents. Text from outside goes in through
// textContent only, and the browser never decodes the file to draw it: the waveform comes as peaks from the server.

let view = { state: "empty" };
let beta = 0;
let showAll = false;
let playing = null; // { start, end } in seconds while a moment plays; null while the whole recording does
let answered = ""; // recording and query of the last answer, to tell a new answer from a redraw

// ---- the static skeleton ----

const root = element.querySelector(".qd-player");
const busy = make("div", "qd-busy");
const busyText = make("span");
const busyBar = make("div", "qd-busy-bar");
busy.append(busyText, busyBar);
busy.setAttribute("role", "status");
const message = make("div", "qd-message");
message.setAttribute("role", "status");
const empty = make("div", "qd-empty");
empty.append(
  make("p", "qd-empty-title", "The recording will appear here"),
  make("p", "", "Upload one or press an example, then say which sound you are looking for."),
);
const stage = make("div", "qd-stage");
const head = make("div", "qd-head");
const toggle = make("button", "qd-toggle");
toggle.type = "button";
const title = make("span", "qd-title");
const time = make("span", "qd-time");
head.append(toggle, title, time);
const plot = make("div", "qd-plot");
const grid = make("div", "qd-grid");
const wave = make("div", "qd-wave");
wave.tabIndex = 0;
wave.setAttribute("role", "slider");
wave.setAttribute("aria-label", "Position in the recording");
const relevance = make("div", "qd-relevance");
const lane = make("div", "qd-lane");
const truth = make("div", "qd-lane qd-truth");
const axis = make("div", "qd-axis");
const band = make("div", "qd-band");
const playhead = make("div", "qd-playhead");
plot.append(grid, wave, relevance, lane, truth, axis, band, playhead);
const trouble = make("p", "qd-trouble");
const table = make("div", "qd-table");
const caption = make("p", "qd-caption");
const audio = make("audio");
audio.preload = "metadata";
stage.append(head, plot, trouble, table, caption, audio);
root.append(busy, message, empty, stage);
busyBar.animate([{ transform: "translateX(-100%)" }, { transform: "translateX(350%)" }], { duration: 1400, iterations: Infinity });

// ---- playing ----

function loaded() {
  if (audio.readyState >= 1) return Promise.resolve();
  return new Promise((resolve) => audio.addEventListener("loadedmetadata", resolve, { once: true }));
}

async function playMoment(row) {
  if (playing && playing.start === row.start && playing.end === row.end && !audio.paused) {
    audio.pause();
    return;
  }
  await loaded();
  playing = { start: row.start, end: row.end };
  audio.currentTime = row.start;
  await start();
}

async function start() {
  try {
    await audio.play();
  } catch (error) {
    if (error.name !== "AbortError") showTrouble();
  }
}

function showTrouble() {
  trouble.textContent =
    "This file does not play in the browser (its format is not supported here, or it was removed after two idle hours). " +
    "The moments still hold; upload it again, as WAV, FLAC, OGG or MP3, to listen.";
}

function follow() {
  // `timeupdate` alone comes up to a quarter of a second late; animation frames stop a moment where it ends.
  if (playing && !audio.paused && audio.currentTime >= playing.end) {
    audio.pause();
    audio.currentTime = playing.end;
    playing = null;
  }
  showPosition();
  if (!audio.paused) requestAnimationFrame(follow);
}

function showPosition() {
  if (!view.duration) return;
  const now = audio.currentTime;
  playhead.style.left = percent(now);
  time.textContent = `${clock(now, 1)} / ${clock(view.duration, 1)}`;
  wave.setAttribute("aria-valuemax", view.duration.toFixed(1));
  wave.setAttribute("aria-valuenow", now.toFixed(1));
  wave.setAttribute("aria-valuetext", clock(now, 1));
}

function showPlaying() {
  const whole = !audio.paused && !playing;
  toggle.replaceChildren(icon(whole ? "pause" : "play"));
  toggle.setAttribute("aria-label", whole ? "Pause the recording" : "Play the recording");
  for (const button of root.querySelectorAll("[data-start]")) {
    const mine = playing !== null && Number(button.dataset.start) === playing.start && Number(button.dataset.end) === playing.end;
    const active = mine && !audio.paused;
    button.classList.toggle("qd-active", active);
    button.setAttribute("aria-pressed", String(active));
    if (button.classList.contains("qd-play")) button.replaceChildren(icon(active ? "pause" : "play"));
  }
  showBand(playing);
}

function showBand(row) {
  band.hidden = !row;
  if (!row) return;
  band.style.left = percent(row.start);
  band.style.width = percent(row.end - row.start);
}

function seek(seconds) {
  playing = null;
  audio.currentTime = Math.min(Math.max(seconds, 0), view.duration);
  showPosition();
  showPlaying();
}

toggle.addEventListener("click", () => {
  const whole = playing === null;
  playing = null;
  if (!audio.paused && whole) audio.pause();
  else if (audio.paused) start();
  else showPlaying();
});
wave.addEventListener("pointerdown", (event) => {
  const box = wave.getBoundingClientRect();
  seek(((event.clientX - box.left) / box.width) * view.duration);
});
wave.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
  const target = { Home: 0, End: view.duration }[event.key] ?? (event.key in steps ? audio.currentTime + steps[event.key] : null);
  if (target === null) return;
  event.preventDefault();
  seek(target);
});
audio.addEventListener("play", () => {
  showPlaying();
  requestAnimationFrame(follow);
});
audio.addEventListener("pause", () => {
  showPosition();
  showPlaying();
});
audio.addEventListener("timeupdate", follow);
audio.addEventListener("error", showTrouble);

// ---- putting a view on the page ----

function drawAnswer() {
  const rows = view.state === "result" ? ranked() : [];
  drawLanes(rows);
  drawTable(rows);
  drawCaption();
  showPlaying();
}

function drawMessage() {
  message.hidden = view.state !== "result";
  if (message.hidden) return;
  message.dataset.kind = view.message.kind;
  message.replaceChildren(make("strong", "", view.message.title), make("span", "", view.message.detail));
  for (const note of view.notes) message.append(make("span", "qd-note", note));
}

function show(next) {
  const working = Boolean(next?.busy);
  busy.hidden = !working;
  root.setAttribute("aria-busy", String(working));
  if (working) {
    busyText.textContent = next.busy; // what is on the page stays until the answer is there
    empty.hidden = true;
    return;
  }
  const before = view;
  view = next || { state: "empty" };
  root.dataset.state = view.state;
  empty.hidden = view.state !== "empty";
  stage.hidden = view.state === "empty";
  drawMessage();
  openAudio(before);
  if (view.state === "empty") return;
  title.textContent = view.title;
  beta = view.beta ?? 0;
  const answer = `${view.audio.url} ${view.query} ${view.verifier}`;
  const fresh = view.state === "result" && answer !== answered;
  answered = answer;
  if (fresh) showAll = false;
  drawWave();
  drawRelevance();
  drawAxis();
  drawAnswer();
  showPosition();
  if (fresh) bringIntoSight();
}

function openAudio(before) {
  if (view.audio?.url === before.audio?.url) return;
  playing = null;
  trouble.textContent = "";
  audio.pause();
  if (view.audio) audio.src = view.audio.url;
  else audio.removeAttribute("src");
}

function bringIntoSight() {
  if (message.getBoundingClientRect().top < window.innerHeight * 0.7) return;
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  message.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
}

window.addEventListener("qamdetr-beta", (event) => {
  if (view.state !== "result") return;
  beta = Number(event.detail);
  drawAnswer();
});
let drawnWidth = 0;
new ResizeObserver(() => {
  // Only a new width changes the drawing; the height follows from it.
  if (view.state === "empty" || plot.clientWidth === drawnWidth) return;
  drawnWidth = plot.clientWidth;
  drawAxis();
  drawAnswer();
}).observe(plot);
watch("value", () => show(props.value));
show(props.value);
