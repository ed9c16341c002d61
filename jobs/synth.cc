#include "pipeline/synth.h"

#include <iostream>

#include "jobs/command.h"
#include "jobs/options.h"
#include "parallel/communicator.h"
#include "parallel/error.h"
#include "pipeline/model/family.h"

namespace switchyard {

int run_synth(const Arguments& arguments) {
  OptionParser parser("synth", "synth --out DIR [options]",
                      "Writes a checkpoint of random weights in Hugging Face layout, the same bytes for the same "
                      "options. For measurements and tests: its routing\n"
                      "is skewed, its text is noise.",
                      "Example, 0.7 B parameters:\n  switchyard synth --out model --d-model 1024 --layers 8 --d-ff "
                      "3584 --heads 16 --kv-heads 4 --head-dim 64 --vocabulary 32000\n");
  SynthSpec spec;
  std::string layout;
  std::string dtype;
  const std::string one_of_families = "one of " + known_families();
  auto add = parser.options().add_options();
  add("out", po::value<std::string>()->required()->value_name("DIR"), "folder to make");
  add("family", po::value(&spec.family)->default_value("mixtral"), one_of_families.c_str());
  add("layout", po::value(&layout)->default_value("per-expert"), "mixtral's tensors: per-expert or fused");
  add("layers", po::value(&spec.n_layers)->default_value(spec.n_layers), "decoder layers");
  add("d-model", po::value(&spec.d_model)->default_value(spec.d_model), "width");
  add("d-ff", po::value(&spec.d_ff)->default_value(spec.d_ff), "intermediate width of an expert");
  add("dense-d-ff", po::value(&spec.dense_d_ff)->value_name("N"), "of a layer without experts; default: as --d-ff");
  add("dense-layers", po::value(&spec.dense_layers)->default_value(spec.dense_layers),
      "deepseek: layers without experts, before the others");
  add("shared-experts", po::value(&spec.n_shared_experts)->default_value(spec.n_shared_experts),
      "deepseek: experts of a layer that every token visits");
  add("heads", po::value(&spec.n_heads)->default_value(spec.n_heads), "attention heads");
  add("kv-heads", po::value(&spec.n_kv_heads)->default_value(spec.n_kv_heads), "key and value heads");
  add("head-dim", po::value(&spec.head_dim)->default_value(spec.head_dim), "width of a head");
  add("vocabulary", po::value(&spec.vocabulary)->default_value(spec.vocabulary), "tokens");
  add("experts", po::value(&spec.n_experts)->default_value(spec.n_experts), "experts of a layer");
  add("top-k", po::value(&spec.top_k)->default_value(spec.top_k), "experts of a token");
  add("max-positions", po::value(&spec.max_positions)->default_value(spec.max_positions), "longest context");
  add("shards", po::value(&spec.shards)->default_value(spec.shards), "safetensors files");
  add("dtype", po::value(&dtype)->default_value("bf16"), "bf16 or f32");
  add("seed", po::value(&spec.seed)->default_value(spec.seed), "other seeds give other weights");
  if (!parser.parse(arguments)) return 0;
  if (layout != "per-expert" && layout != "fused")
    throw UsageError("unknown layout '" + layout + "'", "--layout", "give per-expert or fused");
  if (dtype != "bf16" && dtype != "f32")
    throw UsageError("unknown type '" + dtype + "'", "--dtype", "give bf16 or f32");
  spec.layout = layout == "fused" ? ExpertLayout::fused : ExpertLayout::per_expert;
  spec.dtype = dtype == "f32" ? DType::f32 : DType::bf16;
  if (Communicator::world().rank() != 0) return 0;
  synthesize_checkpoint(parser.get<std::string>("out"), spec);
  std::cout << "wrote " << parser.get<std::string>("out") << "\n";
  return 0;
}

}  // namespace switchyard
