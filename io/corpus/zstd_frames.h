#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace switchyard {

/// Follows the frames and blocks of a zstd file (RFC 8878, section 3.1) without decompressing: whether the file is
/// whole.
class ZstdFrames {
 public:
  /// The next bytes of the file.
  void follow(std::string_view bytes);
  /// At least one frame was seen, and none is cut. What is no zstd at all counts as cut.
  bool whole() const { return frames_ > 0 && part_ == Part::magic && have_ == 0; }

 private:
  enum class Part { magic, skippable_size, descriptor, header, block, body, checksum, nonsense };

  void expect(Part part, std::uint64_t bytes);
  void finish_part();
  void finish_magic();
  void finish_descriptor();
  void finish_block_header();
  void end_frame();
  std::uint32_t number() const;

  Part part_ = Part::magic;
  Part after_body_ = Part::magic;
  std::uint64_t need_ = 4;               // bytes of part_
  std::uint64_t have_ = 0;               // of these, seen
  std::array<unsigned char, 4> kept_{};  // the first of them
  bool has_checksum_ = false;
  std::uint64_t frames_ = 0;
};

}  // namespace switchyard
