// The page: its sections, drawn as they come into view.
const sections = [["overview", "Overview", "", overviewSection]].concat(L === 0 || D === 0 ? [] : [
  ["load", "Load", "How evenly the slots of a layer, one for each expert that a token chose, spread over its experts.", loadSection],
  ["entropy", "Uncertainty", "How sure the router is of its choice.", entropySection],
  ["comparison", "Comparison", "How datasets differ in which experts they use. What is resampled is the document, because tokens of one document are not independent.", comparisonSection],
  ["tokens", "Tokens", "Which tokens go where.", tokensSection],
  ["paths", "Paths", "How tokens move from layer to layer.", pathsSection],
  ["coactivation", "Co-activation", "Which experts of a layer one token chooses together.", coactivationSection],
  ["repetition", "Repetition", "Whether a token goes where the one before it went.", repetitionSection],
  ["documents", "Documents", "Where single documents went, beside all of their dataset.", documentsSection],
  ["ranks", "Ranks", "What the processes that routed the corpus did. This depends on the machine, all else does not.", ranksSection]].filter(([id]) => id !== "documents" || data.documents.length > 0)).concat([
  ["placement", "Placement", "Where the experts would lie better, by the load of each and by which of them a token chooses together.", placementSection],
  ["simulation", "Virtual ranks", "The same routing on other numbers of ranks, on paper.", simulationSection],
  ["probe", "Probe", "Every expert on every token of a sample, whatever the router chose: how alike experts are (Lo et al., A Closer Look into Mixture-of-Experts in Large Language Models, 2024).", probeSection],
  ["weights", "Weights", "How alike the experts are by their weights alone, whatever is routed to them.", weightsSection],
  ["ablation", "Importance", "What the model loses when its experts are changed one at a time. A difference above 0 says that it was better as it is.", ablationSection],
  ].filter(([id]) => data.experiments && data.experiments[id]), [["facts", "Run facts", "", factsSection]]);

document.getElementById("subtitle").textContent = [D > 0 ? whole(sum(data.datasets.map(d => d.tokens))) + " tokens of " + D + (D === 1 ? " dataset" : " datasets") : "", L > 0 ? E + " experts in each of " + L + " layers, " + K + " for a token" : ""].filter(t => t).join(", ");
const waiting = new Map();
const drawSection = node => { const build = waiting.get(node); if (build) { waiting.delete(node); build(node); } };
const watcher = new IntersectionObserver(entries => entries.forEach(e => { if (e.isIntersecting) { watcher.unobserve(e.target); drawSection(e.target); } }), {rootMargin: "400px"});
sections.forEach(([id, name, intro, build]) => {
  element(element(document.getElementById("contents"), "li"), "a", {href: "#" + id}, name);
  const node = element(document.getElementById("main"), "section", {id, "aria-labelledby": id + "-title"});
  element(node, "h2", {id: id + "-title"}, name);
  if (intro) element(node, "p", {class: "intro"}, intro);
  waiting.set(node, build);
});
/// Draws what has not come into view yet: for print, and for whoever wants every figure.
const drawAll = () => Array.from(waiting.keys()).forEach(drawSection);
drawSection(document.getElementById("overview"));
for (const node of waiting.keys()) watcher.observe(node);
window.addEventListener("beforeprint", drawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Object.keys(figures).forEach(id => figures[id].draw()));
window.switchyard = {data, figures, drawAll};
