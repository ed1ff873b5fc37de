// The state of the player and the static skeleton that the other scripts fill. Gradio runs all of them as the body of one function that is
// given `element`, `props`, `trigger`, `watch` and `server` (player.py); `props.value` is the view that lanes.py documents.

let view = { state: "empty" };
let answers = []; // the view's lanes, each with its `number`, `rows` (ranked at `beta`) and `showAll`
let beta = 0;
let active = 0; // number of the lane that j and k walk through
let choice = null; // "lane:candidate" of what is chosen for export; null while it is what is likely
let answered = ""; // recording and answers on the page, to tell a new answer from a redraw
let playing = null; // { start, end } in seconds while a moment plays; null while the whole recording does
let looping = false;
let range = { from: 0, to: 1 }; // seconds in view

const root = element.querySelector(".qd-player");
root.tabIndex = -1; // a press anywhere inside brings the keys here
root.setAttribute("role", "region");
root.setAttribute("aria-label", "Player of the recording and its moments");

// ---- above the player: what is being done, what was found ----

const busy = make("div", "qd-busy");
const busyText = make("span", "qd-busy-text");
busyText.setAttribute("role", "status");
const busyLeft = make("span", "qd-busy-left");
const busyTrack = make("div", "qd-busy-track");
busyTrack.setAttribute("role", "progressbar");
const busyBar = make("div", "qd-busy-bar");
busyTrack.append(busyBar);
const busyCancel = press("qd-cancel", "Cancel", () => {});
busyCancel.hidden = true;
busy.append(busyText, busyLeft, busyCancel, busyTrack);
const message = make("div", "qd-message");
message.setAttribute("role", "status");
const said = make("div", "qd-unseen");
said.setAttribute("aria-live", "polite");
const empty = make("div", "qd-empty");
empty.append(
  make("p", "qd-empty-title", "The recording will appear here"),
  make("p", "", "Upload one or press an example, then say which sound you are looking for."),
);

// ---- the head: play, title, time, zoom, loop, keys ----

const stage = make("div", "qd-stage");
const head = make("div", "qd-head");
const toggle = press("qd-toggle", "Play the recording", () => toggleWhole(), "play");
const title = make("span", "qd-title");
const time = make("span", "qd-time");
const tools = make("div", "qd-tools");
const loopSwitch = press("qd-tool", "Loop the moment", () => setLooping(!looping), "loop");
loopSwitch.setAttribute("role", "switch");
loopSwitch.setAttribute("aria-checked", "false");
const further = press("qd-tool", "Look from further away", () => zoomBy(0.5), "further");
const closer = press("qd-tool", "Look closer", () => zoomBy(2), "closer");
const whole = press("qd-tool", "Show the whole recording", () => showWhole(), "whole");
const helpButton = press("qd-tool qd-help-button", "?", () => showHelp(help.hidden, false));
helpButton.setAttribute("aria-label", "Keys of the player");
helpButton.title = "Keys of the player";
tools.append(loopSwitch, further, closer, whole, helpButton);
head.append(toggle, title, time, tools);
const help = make("div", "qd-help");
help.hidden = true;

// ---- the plot, its overview, and what stands below it ----

const plot = make("div", "qd-plot");
const grid = make("div", "qd-grid");
const wave = make("div", "qd-wave");
wave.tabIndex = 0;
wave.setAttribute("role", "slider");
wave.setAttribute("aria-label", "Position in the recording");
wave.setAttribute("aria-valuemin", "0");
const lanes = make("div", "qd-lanes");
const axis = make("div", "qd-axis");
const band = make("div", "qd-band");
const playhead = make("div", "qd-playhead");
plot.append(grid, wave, lanes, axis, band, playhead);
const overview = make("div", "qd-overview");
overview.tabIndex = 0;
overview.hidden = true;
overview.setAttribute("role", "slider");
overview.setAttribute("aria-label", "Part of the recording in view");
overview.setAttribute("aria-valuemin", "0");
const overviewWave = make("div");
const overviewMarks = make("div");
const overviewWindow = make("div", "qd-overview-window");
const overviewHead = make("div", "qd-overview-head");
overview.append(overviewWave, overviewMarks, overviewWindow, overviewHead);
const trouble = make("p", "qd-trouble");
const sections = make("div", "qd-sections");
const audio = make("audio");
audio.preload = "metadata";
stage.append(head, help, plot, overview, trouble, sections, audio);
root.append(busy, message, said, empty, stage);
