// What the player computes, apart from the page: ranking, time window, ticks, words for times. Pure; a test runs this file under node and
// compares it with Python. It comes first of the scripts that run as one body (player.py).

const TICK_SECONDS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
const LEAST_SECONDS = 1; // the closest look

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// ---- ranking: the formula of the server (report, Eq. 3), so that the slider answers at once ----

function isVerified(lane) {
  return lane.verifier !== "none" && lane.moments.every((row) => row.verifier_score !== null);
}

/** Whether the decoder's scores were made into probabilities, which are what is shown and blended. */
const isCalibrated = (lane) => lane.moments.some((row) => row.probability !== row.decoder_score);

/** Rows of a lane as they rank at a weight of the verifier, best first; `candidate` is the index in the lane's `moments`. */
function ranked(lane, beta) {
  const verified = isVerified(lane);
  const rows = lane.moments.map((row, candidate) => ({
    ...row,
    candidate,
    score: verified ? (1 - beta) * row.probability + beta * row.verifier_score : row.score,
  }));
  if (verified) rows.sort((a, b) => b.decoder_score - a.decoder_score); // equal scores keep the decoder's order, as on the server
  const byDecoder = rows.map((row) => row.candidate);
  if (verified) rows.sort((a, b) => b.score - a.score);
  rows.forEach((row, index) => {
    row.moved = byDecoder.indexOf(row.candidate) - index;
    row.rank = index + 1;
    row.guess = !lane.found && index === 0;
    row.likely = lane.found ? isLikely(lane.likely, row, index, rows) : row.guess;
  });
  return rows;
}

const likelyScore = (limits, rows) => Math.max(limits.score, limits.share * rows[0].score);

/** Whether a row is worth showing as an answer; `mark_likely` of the server in other words. Better rows know already. */
function isLikely(limits, row, index, rows) {
  const vouched = index === 0 || row.decoder_score >= limits.threshold || (row.verifier_score ?? 0) >= limits.yes;
  const double = (other) => {
    const shared = Math.min(row.end, other.end) - Math.max(row.start, other.start);
    return shared > limits.overlap * Math.min(row.end - row.start, other.end - other.start);
  };
  return row.score >= likelyScore(limits, rows) && vouched && !rows.slice(0, index).some((other) => other.likely && double(other));
}

/** Title of an answer at the weight its rows were ranked with; Python says the same at its own. */
function answerTitle(lane, rows) {
  if (lane.message.kind !== "found") return lane.message.title;
  const likely = rows.filter((row) => row.likely).length;
  return likely === 1 ? "1 likely moment" : `${likely} likely moments`;
}

/** Whether quality ranks: without that head, or with it bypassed, there is none. */
const hasQuality = (lane) => lane.moments.some((row) => row.quality !== null);

/**
 * IoU with a true window of what a lane ranks first, and the largest of what it calls likely where that is another; empty where no true
 * window is known. The largest alone would praise whoever calls much likely.
 */
function iouWords(lane) {
  const known = lane.truth?.length ? lane.rows.filter((row) => row.likely).map((row) => row.iou) : [];
  if (!known.length) return "";
  const [first, best] = [figure(known[0]), figure(Math.max(...known))];
  return first === best ? `IoU ${first}` : `first: IoU ${first}, best: ${best}`;
}

/** For each lane what the lane of true moments below it is called; null where there is none: each query has one, below its last answer. */
function truthWords(lanes) {
  const several = new Set(lanes.map((lane) => lane.query)).size > 1;
  return lanes.map((lane, index) => {
    const follows = lanes.slice(index + 1).some((other) => other.query === lane.query && other.truth !== null);
    if (lane.truth === null || follows) return null;
    return several ? `True moments of “${lane.query}”` : "True moments";
  });
}

/** Ends `[[x, y], [x, y]]` of the line (1 - beta) x + beta y = score inside the unit square, or null where it misses the square. */
function blendLine(beta, score) {
  const slack = 1e-9;
  const ends = [];
  const add = (x, y) => {
    const inside = [x, y].every((value) => value >= -slack && value <= 1 + slack);
    if (inside && !ends.some(([a, b]) => Math.hypot(a - x, b - y) < 1e-6)) ends.push([clamp(x, 0, 1), clamp(y, 0, 1)]);
  };
  for (const edge of [0, 1]) {
    if (beta > 0) add(edge, (score - (1 - beta) * edge) / beta);
    if (beta < 1) add((score - beta * edge) / (1 - beta), edge);
  }
  return ends.length < 2 ? null : ends.slice(0, 2);
}

// ---- the part of the recording in view, in seconds ----

function placed(from, span, duration) {
  const start = clamp(from, 0, Math.max(duration - span, 0));
  return { from: start, to: Math.min(start + span, duration) };
}

/** Look closer (factor above 1) or from further away; the second `centre` stays where it is on the screen. */
function zoomed(range, factor, centre, duration) {
  const span = range.to - range.from;
  const next = clamp(span / factor, Math.min(LEAST_SECONDS, duration), duration);
  return placed(centre - ((centre - range.from) / span) * next, next, duration);
}

function panned(range, seconds, duration) {
  return placed(range.from + seconds, range.to - range.from, duration);
}

/** Move the view so that a window can be seen; unchanged where it can be already. */
function revealed(range, start, end, duration) {
  const span = range.to - range.from;
  if (start >= range.from && end <= range.to) return range;
  return placed(end - start > span ? start - 0.1 * span : (start + end - span) / 2, span, duration);
}

/** Step between ticks in seconds, so that at most `most` of them are in view. */
function tickStep(span, most) {
  return TICK_SECONDS.find((step) => span / step <= most) ?? Math.ceil(span / most / 3600) * 3600;
}

// ---- finer columns of the waveform ----

const COLUMN_PIXELS = 1.5; // wider columns show that they are columns
const MOST_LOOK_COLUMNS = 2000; // both as in player.py
const MOST_LOOK_SECONDS = 600;

/**
 * The part `{ from, to, columns }` to ask the server for, or null where what there is will do: the overview's `columns` over the whole
 * recording, or `fine` ({ from, to, columns, asked }, or null) from an earlier answer. A little more than the view, so that it can be panned.
 */
function closerLook(range, duration, columns, pixels, fine) {
  const span = range.to - range.from;
  const tooWide = (seconds) => (seconds / span) * pixels > COLUMN_PIXELS;
  if (!pixels || span > MOST_LOOK_SECONDS || !tooWide(duration / columns)) return null;
  const margin = Math.min(span / 4, (MOST_LOOK_SECONDS - span) / 2);
  const from = Math.max(range.from - margin, 0);
  const to = Math.min(range.to + margin, duration);
  const part = { from, to, columns: Math.min(Math.ceil(((to - from) / span) * pixels), MOST_LOOK_COLUMNS) };
  if (fine && range.from >= fine.from - 1e-6 && range.to <= fine.to + 1e-6) {
    const every = fine.columns < fine.asked; // there are no more samples
    const width = (fine.to - fine.from) / fine.columns;
    if (every || !tooWide(width) || (to - from) / part.columns > 0.9 * width) return null;
  }
  return part;
}

// ---- words ----

function clock(seconds, decimals) {
  const unit = 10 ** decimals;
  const total = Math.round(seconds * unit);
  const whole = Math.floor(total / unit);
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor((whole % 3600) / 60);
  const rest = String(whole % 60).padStart(2, "0") + (decimals ? "." + String(total % unit).padStart(decimals, "0") : "");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

const figure = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));
const windowWords = (row) => `${clock(row.start, 1)} to ${clock(row.end, 1)}`;
