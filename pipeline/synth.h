#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "parallel/tensor.h"

namespace switchyard {

/// How a MoE layer's experts lie in the file.
enum class ExpertLayout : std::uint8_t {
  per_expert,  // mixtral: block_sparse_moe.experts.E.w1, .w3 [d_ff, d_model], .w2 [d_model, d_ff]
  fused,       // mlp.experts.gate_up_proj [E, 2 d_ff, d_model], .down_proj [E, d_model, d_ff]
};

/// A model to be made up. What its family does not have, as experts of a dense one, does not matter.
struct SynthSpec {
  std::string family = "mixtral";  // a known one
  ExpertLayout layout = ExpertLayout::per_expert;
  int n_layers = 2;
  int d_model = 64;
  int d_ff = 128;        // of one expert
  int dense_d_ff = 0;    // of a layer without experts; 0: d_ff
  int dense_layers = 1;  // in front of the routed ones
  int n_shared_experts = 2;
  int n_heads = 4;
  int n_kv_heads = 2;
  int head_dim = 16;  // even
  int vocabulary = 256;
  int n_experts = 8;
  int top_k = 2;
  int max_positions = 4096;
  int sliding_window = 0;  // 0: none
  int shards = 1;
  DType dtype = DType::bf16;
  std::uint64_t seed = 1;
};

/// Writes a Hugging Face checkpoint of random weights: config.json, and model.safetensors or shards with their index.
/// Made for measurements and tests of models that nobody can download.
///
/// A value depends on the seed, the weight's role and its place in it alone: not on threads, shards or layout, so that
/// both layouts of one seed are the same model. Weights are near-normal with deviation 0.02, norms are 1. Router rows
/// have deviations from 0.5 to 2 over sqrt(d_model), the largest at another expert in each layer: logits differ by
/// about one, and some experts are chosen far more often than others.
///
/// Needs memory for one tensor. config.json comes last: a folder without it was not finished.
/// Throws UsageError naming the field that is out of range, Error when the folder already holds a checkpoint or cannot
/// be written.
void synthesize_checkpoint(const std::filesystem::path& folder, const SynthSpec& spec);

}  // namespace switchyard
