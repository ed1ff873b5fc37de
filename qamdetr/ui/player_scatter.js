// Decoder against verifier: where the two agree, and which candidates the present weight prefers.

const SCATTER = { width: 240, height: 214, left: 42, right: 10, top: 10, bottom: 42 };

function scatter(lane) {
  const box = SCATTER;
  const x = (value) => box.left + value * (box.width - box.left - box.right);
  const y = (value) => box.height - box.bottom - value * (box.height - box.top - box.bottom);
  const svg = draw("svg", { viewBox: `0 0 ${box.width} ${box.height}`, role: "group", "aria-label": `Decoder and verifier scores for ${lane.label}` });
  svg.append(draw("rect", { class: "qd-frame", x: x(0), y: y(1), width: x(1) - x(0), height: y(0) - y(1) }));
  for (const value of [0, 0.5, 1]) {
    svg.append(label(String(value), x(value), y(0) + 20, "middle"), label(String(value), x(0) - 11, y(value) + 4, "end"));
  }
  const across = label(isCalibrated(lane) ? "Probability by the decoder" : "Decoder score", x(0.5), box.height - 5, "middle");
  const up = label("Verifier score", 0, 0, "middle");
  up.setAttribute("transform", `translate(9 ${y(0.5)}) rotate(-90)`);
  svg.append(across, up);
  const line = blendLine(beta, likelyScore(lane.likely, lane.rows));
  if (line && lane.found) {
    const [[x1, y1], [x2, y2]] = line;
    svg.append(draw("line", { class: "qd-blend", x1: x(x1), y1: y(y1), x2: x(x2), y2: y(y2) }));
  }
  for (const row of [...lane.rows].reverse()) svg.append(point(lane, row, x(row.probability), y(row.verifier_score))); // the best on top
  const figureBox = make("figure", "qd-scatter");
  const words = lane.found ? "Dashed: equal blended score; what lies below it is less likely." : "Nothing here is likely; number 1 is the best guess.";
  figureBox.append(svg, make("figcaption", "", words));
  return figureBox;
}

function label(text, x, y, anchor) {
  const node = draw("text", { x, y, "text-anchor": anchor, "aria-hidden": "true" });
  node.textContent = text;
  return node;
}

function point(lane, row, x, y) {
  const node = draw("g", { class: `qd-point ${row.likely && !row.guess ? "qd-likely" : "qd-unlikely"}`, tabindex: 0, role: "button" });
  const words = `${row.rank}: ${windowWords(row)}, ${isCalibrated(lane) ? "probability" : "decoder"} ${figure(row.probability)}, verifier ${figure(row.verifier_score)}, score ${figure(row.score)}`;
  node.setAttribute("aria-label", `Play moment ${words}`);
  const tip = draw("title", {});
  tip.textContent = words;
  const rank = label(String(row.rank), x, y + 3.5, "middle");
  node.append(tip, draw("circle", { cx: x, cy: y, r: 8 }), rank);
  node.dataset.lane = lane.number;
  playable(node, row, lane.number);
  return node;
}
