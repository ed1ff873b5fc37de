/** The weight of the verifier that a box says: cut to [0, 1]; a box that is empty, or holds no number, leaves the last one. */
function weightOf(given, last) {
  const number = given === null || given === undefined || given === "" ? NaN : Number(given);
  return Number.isNaN(number) ? last : Math.min(Math.max(number, 0), 1);
}
