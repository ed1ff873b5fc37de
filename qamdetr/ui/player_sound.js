// Playing: a moment stops, or starts again, at its end; the playhead follows the sound.

function loaded() {
  if (audio.readyState >= 1) return Promise.resolve();
  return new Promise((resolve) => audio.addEventListener("loadedmetadata", resolve, { once: true }));
}

const isPlaying = (row) => playing !== null && playing.start === row.start && playing.end === row.end;

async function playMoment(row) {
  if (isPlaying(row) && !audio.paused) {
    audio.pause();
    return;
  }
  setRange(revealed(range, row.start, row.end, view.duration));
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

function toggleWhole() {
  const wasWhole = playing === null;
  playing = null;
  if (!audio.paused && wasWhole) audio.pause();
  else if (audio.paused) start();
  else showPlaying();
}

/** Pause, or go on with what was playing; a moment that is focused and not yet heard comes first. */
function toggleAny(focused) {
  if (!audio.paused) audio.pause();
  else if (focused && !isPlaying(focused)) playMoment(focused);
  else start();
}

function setLooping(on) {
  looping = on;
  loopSwitch.setAttribute("aria-checked", String(on));
}

let frame = 0;

function follow() {
  // `timeupdate` alone comes up to a quarter of a second late; animation frames stop a moment where it ends.
  if (playing && !audio.paused && audio.currentTime >= playing.end) {
    if (looping) audio.currentTime = playing.start;
    else {
      audio.pause();
      audio.currentTime = playing.end;
      playing = null;
    }
  }
  if (!audio.paused && !dragging() && audio.currentTime > range.to && range.to < view.duration) {
    setRange(placed(audio.currentTime, range.to - range.from, view.duration));
  }
  showPosition();
  cancelAnimationFrame(frame);
  if (!audio.paused) frame = requestAnimationFrame(follow);
}

function ended() {
  if (!looping) {
    playing = null;
    showPlaying();
    return;
  }
  audio.currentTime = playing ? playing.start : 0;
  start();
}

function seek(seconds) {
  playing = null;
  const target = clamp(seconds, 0, view.duration);
  audio.currentTime = target;
  setRange(revealed(range, target, target, view.duration));
  showPosition();
  showPlaying();
}

function showPosition() {
  if (!view.duration) return;
  const now = audio.currentTime;
  playhead.style.left = at(now);
  playhead.hidden = now < range.from || now > range.to;
  overviewHead.style.left = `${(100 * now) / view.duration}%`;
  time.textContent = `${clock(now, 1)} / ${clock(view.duration, 1)}`;
  wave.setAttribute("aria-valuemax", view.duration.toFixed(1));
  wave.setAttribute("aria-valuenow", now.toFixed(1));
  wave.setAttribute("aria-valuetext", clock(now, 1));
}

function showPlaying() {
  const all = !audio.paused && !playing;
  const words = all ? "Pause the recording" : "Play the recording";
  toggle.replaceChildren(icon(all ? "pause" : "play"));
  toggle.setAttribute("aria-label", words);
  toggle.title = words;
  for (const button of root.querySelectorAll("[data-start]")) {
    const sounding = isPlaying({ start: Number(button.dataset.start), end: Number(button.dataset.end) }) && !audio.paused;
    button.classList.toggle("qd-active", sounding);
    button.setAttribute("aria-pressed", String(sounding));
    if (button.classList.contains("qd-play")) button.replaceChildren(icon(sounding ? "pause" : "play"));
  }
  showBand(playing);
}

let bandRow = null;

function showBand(row) {
  bandRow = row;
  band.hidden = !row;
  if (!row) return;
  band.style.left = at(row.start);
  band.style.width = wide(row.end - row.start);
}

/** Make an element play a moment, and show where it is while it is pointed at. */
function playable(button, row, lane) {
  button.dataset.start = row.start;
  button.dataset.end = row.end;
  button.addEventListener("click", () => playMoment(row));
  button.addEventListener("focus", () => {
    if (lane !== undefined) active = lane;
  });
  for (const event of ["mouseenter", "focus"]) button.addEventListener(event, () => showBand(row));
  for (const event of ["mouseleave", "blur"]) button.addEventListener(event, () => showBand(audio.paused ? null : playing));
}

audio.addEventListener("play", () => {
  showPlaying();
  follow();
});
audio.addEventListener("pause", () => {
  showPosition();
  showPlaying();
});
audio.addEventListener("ended", ended);
audio.addEventListener("timeupdate", follow);
audio.addEventListener("seeked", showPosition);
audio.addEventListener("error", showTrouble);
