#include "io/corpus/byte_stream.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/iostreams/categories.hpp>
#include <boost/iostreams/filter/gzip.hpp>
#include <boost/iostreams/filter/zstd.hpp>
#include <boost/iostreams/filtering_streambuf.hpp>
#include <cerrno>
#include <cstring>
#include <utility>

#include "io/corpus/zstd_frames.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

constexpr std::size_t kLineBytesKept = std::size_t{4} << 20U;  // a longer line's memory goes back
constexpr std::size_t kFilterBytes = std::size_t{1} << 17U;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

class PlainSource final : public ByteSource {
 public:
  explicit PlainSource(const std::filesystem::path& file)
      : name_(file.string()), descriptor_(::open(file.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ < 0) throw Error(std::string("cannot be opened: ") + std::strerror(errno), name_);
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
      ::close(descriptor_);
      throw Error("not a regular file", name_, "a corpus is read more than once; write pipes to a file first");
    }
    size_ = static_cast<std::uint64_t>(status.st_size);
    ::posix_fadvise(descriptor_, 0, 0, POSIX_FADV_SEQUENTIAL);
  }
  PlainSource(const PlainSource&) = delete;
  PlainSource& operator=(const PlainSource&) = delete;
  ~PlainSource() override { ::close(descriptor_); }

  std::size_t read(std::span<char> into) override {
    std::size_t done = 0;
    while (done < into.size()) {
      const ssize_t count = ::read(descriptor_, into.data() + done, into.size() - done);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) throw Error(std::string("reading failed: ") + std::strerror(errno), name_);
      if (count == 0) break;
      done += static_cast<std::size_t>(count);
    }
    return done;
  }

  bool seek(std::uint64_t offset) override {
    if (offset > size_) throw Error("ends before byte " + std::to_string(offset), name_, "the file has changed");
    if (::lseek(descriptor_, static_cast<off_t>(offset), SEEK_SET) < 0) {
      throw Error(std::string("seeking failed: ") + std::strerror(errno), name_);
    }
    return true;
  }

  std::optional<std::uint64_t> size() const override { return size_; }

 private:
  std::string name_;
  int descriptor_;
  std::uint64_t size_ = 0;
};

/// A plain file as Boost.Iostreams wants it; zstd frames are followed, because the filter takes a cut file for a whole
/// one.
class CompressedBytes {
 public:
  using char_type = char;
  using category = boost::iostreams::source_tag;

  CompressedBytes(const std::filesystem::path& file, bool zstd)
      : file_(std::make_shared<PlainSource>(file)), frames_(zstd ? std::make_shared<ZstdFrames>() : nullptr) {}

  std::streamsize read(char* into, std::streamsize count) {
    const std::size_t got = file_->read({into, static_cast<std::size_t>(count)});
    if (frames_) frames_->follow({into, got});
    if (got != 0) return static_cast<std::streamsize>(got);
    if (frames_ && !frames_->whole()) throw std::ios_base::failure("truncated");
    return -1;
  }

 private:
  std::shared_ptr<PlainSource> file_;  // shared: Boost copies devices
  std::shared_ptr<ZstdFrames> frames_;
};

class CompressedSource final : public ByteSource {
 public:
  CompressedSource(const std::filesystem::path& file, bool zstd)
      : name_(file.string()), format_(zstd ? "zstd" : "gzip") {
    if (zstd) {
      chain_.push(boost::iostreams::zstd_decompressor(kFilterBytes), kFilterBytes);
    } else {
      chain_.push(boost::iostreams::gzip_decompressor(boost::iostreams::gzip::default_window_bits, kFilterBytes),
                  kFilterBytes);
    }
    chain_.push(CompressedBytes(file, zstd), kFilterBytes);
  }

  std::size_t read(std::span<char> into) override {
    try {
      const auto count = chain_.sgetn(into.data(), static_cast<std::streamsize>(into.size()));
      if (count <= 0) return 0;
      offset_ += static_cast<std::uint64_t>(count);
      return static_cast<std::size_t>(count);
    } catch (const Error&) {
      throw;
    } catch (const std::exception&) {
      throw Error(
          "corrupt or truncated " + format_ + " data (after " + std::to_string(offset_) + " good bytes or more)", name_,
          "copy or compress the file again");
    }
  }

 private:
  std::string name_;
  std::string format_;
  boost::iostreams::filtering_streambuf<boost::iostreams::input> chain_;
  std::uint64_t offset_ = 0;
};

class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(std::string bytes) : bytes_(std::move(bytes)) {}
  std::size_t read(std::span<char> into) override {
    const std::size_t count = bytes_.copy(into.data(), into.size(), at_);
    at_ += count;
    return count;
  }
  bool seek(std::uint64_t offset) override {
    if (offset > bytes_.size()) throw Error("ends before byte " + std::to_string(offset));
    at_ = static_cast<std::size_t>(offset);
    return true;
  }

 private:
  std::string bytes_;
  std::size_t at_ = 0;
};

std::uint64_t count_newlines(std::string_view bytes) {
  return static_cast<std::uint64_t>(std::count(bytes.begin(), bytes.end(), '\n'));
}

}  // namespace

std::unique_ptr<ByteSource> open_source(const std::filesystem::path& file) {
  if (file.extension() == ".gz") return std::make_unique<CompressedSource>(file, false);
  if (file.extension() == ".zst") return std::make_unique<CompressedSource>(file, true);
  return std::make_unique<PlainSource>(file);
}

std::unique_ptr<ByteSource> memory_source(std::string bytes) {
  return std::make_unique<MemorySource>(std::move(bytes));
}

ByteStream::ByteStream(std::unique_ptr<ByteSource> source, std::string name, std::size_t buffer_bytes,
                       std::function<bool()> called_off)
    : source_(std::move(source)), name_(std::move(name)), buffer_(buffer_bytes), called_off_(std::move(called_off)) {
  pass_byte_order_mark();
}

void ByteStream::pass_byte_order_mark() {
  if (buffered().substr(0, kByteOrderMark.size()) == kByteOrderMark) consume(kByteOrderMark.size());
}

std::string_view ByteStream::buffered() {
  if (begin_ == end_) {
    if (called_off_ && called_off_()) throw ReadingCalledOff();
    begin_ = 0;
    end_ = source_->read(buffer_);
  }
  return {buffer_.data() + begin_, end_ - begin_};
}

void ByteStream::consume(std::size_t count) {
  newlines_ += count_newlines({buffer_.data() + begin_, count});
  begin_ += count;
  offset_ += count;
}

ByteStream::Line ByteStream::read_line(std::uint64_t limit) {
  Line line;
  if (line_.capacity() > kLineBytesKept) line_ = {};
  line_.clear();
  for (std::string_view bytes = buffered(); !bytes.empty(); bytes = buffered()) {
    const std::size_t feed = bytes.find('\n');
    const bool ended = feed != std::string_view::npos;
    const std::string_view part = bytes.substr(0, feed);
    const auto room = static_cast<std::size_t>(std::min<std::uint64_t>(part.size(), limit - line_.size()));
    const bool in_buffer = ended && line.length == 0;  // stays valid: the buffer is refilled by the next call only
    if (in_buffer) {
      line.bytes = part.substr(0, room);
    } else {
      line_.append(part.substr(0, room));
      line.bytes = line_;
    }
    line.found = true;
    line.length += part.size();
    consume(part.size() + (ended ? 1 : 0));
    if (ended) break;
  }
  return line;
}

void ByteStream::skip_to(std::uint64_t offset, std::uint64_t newlines) {
  if (offset > offset_ + (end_ - begin_) && source_->seek(offset)) {
    newlines_ = newlines;
    offset_ = offset;
    begin_ = end_ = 0;
    return;
  }
  while (offset_ < offset) {
    const std::size_t at_hand = buffered().size();
    if (at_hand == 0) throw Error("ends before byte " + std::to_string(offset), name_, "the file has changed");
    consume(static_cast<std::size_t>(std::min<std::uint64_t>(at_hand, offset - offset_)));
  }
}

void ByteStream::skip_to_end() {
  if (const auto size = source_->size(); size && *size > offset_) return skip_to(*size, newlines_);
  for (std::string_view bytes = buffered(); !bytes.empty(); bytes = buffered()) consume(bytes.size());
}

}  // namespace switchyard
