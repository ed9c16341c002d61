#include "io/corpus/zstd_frames.h"

#include <algorithm>

namespace switchyard {
namespace {

constexpr std::uint32_t kMagic = 0xFD2FB528U;
constexpr std::uint32_t kSkippableMagic = 0x184D2A50U;  // the last four bits are free
constexpr std::uint32_t kBlockRunLength = 1;
constexpr std::uint32_t kBlockReserved = 3;

}  // namespace

void ZstdFrames::follow(std::string_view bytes) {
  while (!bytes.empty() && part_ != Part::nonsense) {
    const auto take = static_cast<std::size_t>(std::min<std::uint64_t>(bytes.size(), need_ - have_));
    for (std::size_t i = 0; i < take && have_ + i < kept_.size(); ++i) {
      kept_[static_cast<std::size_t>(have_) + i] = static_cast<unsigned char>(bytes[i]);
    }
    have_ += take;
    bytes.remove_prefix(take);
    while (have_ == need_ && part_ != Part::nonsense) finish_part();
  }
}

void ZstdFrames::expect(Part part, std::uint64_t bytes) {
  part_ = part;
  need_ = bytes;
  have_ = 0;
  kept_.fill(0);
}

std::uint32_t ZstdFrames::number() const {
  std::uint32_t value = 0;
  for (std::size_t i = kept_.size(); i-- > 0;) value = (value << 8U) | kept_[i];
  return value;
}

void ZstdFrames::finish_part() {
  switch (part_) {
    case Part::magic:
      return finish_magic();
    case Part::skippable_size:
      after_body_ = Part::magic;
      return expect(Part::body, number());
    case Part::descriptor:
      return finish_descriptor();
    case Part::header:
      return expect(Part::block, 3);
    case Part::block:
      return finish_block_header();
    case Part::body:
      if (after_body_ == Part::magic) return end_frame();
      return expect(after_body_, after_body_ == Part::block ? 3 : 4);
    case Part::checksum:
      return end_frame();
    case Part::nonsense:
      return;
  }
}

void ZstdFrames::finish_magic() {
  if (number() == kMagic) return expect(Part::descriptor, 1);
  if ((number() & ~0xFU) == kSkippableMagic) return expect(Part::skippable_size, 4);
  expect(Part::nonsense, 1);
}

void ZstdFrames::finish_descriptor() {
  const std::uint32_t descriptor = number();
  const bool single_segment = (descriptor & 0x20U) != 0;
  const std::uint32_t size_flag = descriptor >> 6U;
  const std::uint64_t content_size_bytes = size_flag == 0 ? (single_segment ? 1 : 0) : std::uint64_t{1} << size_flag;
  const std::uint64_t dictionary_bytes = (std::uint64_t{1} << (descriptor & 3U)) >> 1U;
  has_checksum_ = (descriptor & 4U) != 0;
  expect(Part::header, (single_segment ? 0 : 1) + dictionary_bytes + content_size_bytes);
}

void ZstdFrames::finish_block_header() {
  const std::uint32_t header = number();
  const std::uint32_t type = (header >> 1U) & 3U;
  const bool last = (header & 1U) != 0;
  if (type == kBlockReserved) return expect(Part::nonsense, 1);
  after_body_ = !last ? Part::block : has_checksum_ ? Part::checksum : Part::magic;
  expect(Part::body, type == kBlockRunLength ? 1 : header >> 3U);
}

void ZstdFrames::end_frame() {
  ++frames_;
  expect(Part::magic, 4);
}

}  // namespace switchyard
