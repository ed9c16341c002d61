// Single documents beside their dataset: for sets of questions.
function documentsSection(section) {
  const state = {dataset: data.documents[0].dataset, layer: data.target_layer};
  const of = () => data.documents.filter(d => d.dataset === state.dataset);
  const name = d => d.id + (d.category === "" ? "" : " (" + d.category + ")");
  const counts = d => d.count.slice(state.layer * E, (state.layer + 1) * E);
  // The dataset's own row stands first.
  const shown = () => [{id: "all of " + names[state.dataset], category: "", tokens: data.datasets[state.dataset].tokens, slots: slots(state.dataset, state.layer)}].concat(of().map(d => ({id: d.id, category: d.category, tokens: d.tokens, slots: counts(d)})));
  const share = (d, e) => sum(d.slots) > 0 ? d.slots[e] / sum(d.slots) : null;
  figure(element(section, "div", {class: "figures"}), {id: "document-usage", wide: true, title: () => "Usage of the experts by document, layer " + layers[state.layer],
    note: () => "Over the even share 1/E; the first " + whole(of().length) + " documents of " + names[state.dataset] + ", below the usage of all of it.",
    columns: ["document", "category", "tokens", "layer", "expert", "count", "usage"],
    rows: () => [].concat(...shown().map(d => range(E).map(e => [d.id, d.category, d.tokens, layers[state.layer], e, d.slots[e], share(d, e)]))),
    controls: (parent, draw) => {
      if (D > 1) choice(parent, "Dataset", datasetOptions.filter(([d]) => data.documents.some(x => x.dataset === d)), state.dataset, v => { state.dataset = +v; draw(); });
      choice(parent, "Layer", layerOptions, state.layer, v => { state.layer = +v; draw(); });
    },
    draw: (svg, width) => {
      const documents = shown(), y = ratioKey(svg, 4, 0, "times the even share");
      return y + heatMap(svg, width, {rows: documents.map(name), columns: range(E), value: (i, e) => share(documents[i], e), colour: u => ratioColour(known(u) ? u * E : null),
        words: (i, e) => name(documents[i]) + ", layer " + layers[state.layer] + ", expert " + e + "\n" + whole(documents[i].slots[e]) + " slots, usage " + percent(share(documents[i], e)) + " (all: " + percent(share(documents[0], e)) + ")"}, {x: 0, y: y + 4});
    }});
}
