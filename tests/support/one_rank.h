#pragma once

#include <filesystem>
#include <memory>

#include "pipeline/model/model.h"

namespace switchyard::testing_support {

/// A model on one rank.
class OneRank {
 public:
  OneRank(const std::filesystem::path& folder, Precision precision, Device device = Device::cpu,
          AttentionKernel attention = AttentionKernel::own)
      : checkpoint_(folder),
        config_(ModelConfig::parse(checkpoint_.config_text(), folder.string())),
        placement_(ExpertPlacement::contiguous(config_.n_moe_layers(), config_.n_experts, 1)),
        comm_(Communicator::self()),
        transport_(make_transport("local", comm_)),
        model_(checkpoint_, config_, placement_, comm_, *transport_, {precision, device, attention}) {}

  Model& model() { return model_; }
  TokenLosses forward(const Batch& batch, RoutingObserver& observer) { return model_.forward(batch, observer); }

 private:
  Checkpoint checkpoint_;
  ModelConfig config_;
  ExpertPlacement placement_;
  Communicator comm_;
  std::unique_ptr<ExpertTransport> transport_;
  Model model_;
};

}  // namespace switchyard::testing_support
