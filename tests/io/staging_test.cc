#include "io/staging.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <string>

#include "io/checkpoint.h"
#include "io/safetensors.h"
#include "tests/io/record_support.h"
#include "tests/support/error_text.h"
#include "tests/support/small_disk.h"
#include "tests/support/temp_folder.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using testing::error_text;
using ::testing::HasSubstr;
using testing::read_file;
using testing::SharedFolder;
using testing::SmallDisk;
using testing::write_file;

const fs::path kDemo = fs::path(SWITCHYARD_TEST_DATA) / "data" / "demo";

bool always(std::uint64_t, std::uint64_t) { return true; }

/// A checkpoint in two shards, with a file beside them that is not of it.
fs::path write_sharded(const fs::path& folder) {
  fs::create_directories(folder);
  write_file(folder / "config.json", R"({"model_type": "mixtral"})");
  write_file(folder / "README.md", "about it");
  for (const std::string name : {"one", "two"})
    write_safetensors(folder / (name + ".safetensors"), DType::f32, {{name, {4}}}, [](const TensorToWrite&) {
      Tensor values(DType::f32, 1, 4);
      std::fill_n(values.data<float>(), 4, 0.5F);
      return values;
    });
  write_file(folder / "model.safetensors.index.json",
             R"({"weight_map": {"one": "one.safetensors", "two": "two.safetensors"}})");
  return folder;
}

/// Names in a folder that are no locks.
std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() != ".lock") names.insert(entry.path().filename().string());
  return names;
}

std::uint64_t bytes_of(const Checkpoint& checkpoint) {
  std::uint64_t bytes = 0;
  for (const fs::path& path : checkpoint.paths()) bytes += fs::file_size(path);
  return bytes;
}

/// The copy has every file of the checkpoint, byte for byte, and no other.
void expect_copy(const fs::path& source, const fs::path& copy) {
  const Checkpoint checkpoint(source);
  std::set<std::string> names;
  for (const fs::path& path : checkpoint.paths()) {
    names.insert(path.filename().string());
    EXPECT_TRUE(read_file(path) == read_file(copy / path.filename())) << path;
  }
  EXPECT_GE(names.size(), 2U);
  EXPECT_EQ(names_in(copy), names);
}

TEST(Staging, CopiesOnceANodeAndTakesTheCopyAgain) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const fs::path disk = folder.path() / "disk";
  if (comm.rank() == 0) write_sharded(folder.path() / "sharded");
  comm.barrier();
  std::set<std::string> expected;
  for (const fs::path& source : {kDemo, folder.path() / "sharded"}) {
    const Checkpoint checkpoint(source);
    std::uint64_t last = 0;
    const StagedCheckpoint staged = stage_checkpoint(
        source, disk,
        [&](std::uint64_t copied, std::uint64_t all) {
          EXPECT_GE(copied, last);
          EXPECT_EQ(all, bytes_of(checkpoint));
          last = copied;
          return true;
        },
        comm);
    EXPECT_EQ(staged.folder, disk / (source.filename().string() + "-" + checkpoint.fingerprint()));
    EXPECT_EQ(staged.bytes, comm.rank() == 0 ? bytes_of(checkpoint) : 0);
    EXPECT_EQ(last, staged.bytes);
    expect_copy(source, staged.folder);
    EXPECT_EQ(Checkpoint(staged.folder).fingerprint(), checkpoint.fingerprint());
    expected.insert(staged.folder.filename().string());
    EXPECT_EQ(names_in(disk), expected);

    const StagedCheckpoint again = stage_checkpoint(source, disk, always, comm);
    EXPECT_EQ(again.folder, staged.folder);
    EXPECT_EQ(again.bytes, 0U);
  }
}

TEST(Staging, MakesADamagedCopyAnew) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const fs::path copy = stage_checkpoint(kDemo, folder.path(), always, comm).folder;
  const fs::path shard = Checkpoint(kDemo).files().front().path().filename();
  for (const int damage : {0, 1, 2}) {
    comm.barrier();
    if (comm.rank() == 0) {
      if (damage == 0) fs::resize_file(copy / shard, fs::file_size(copy / shard) - 1);
      if (damage == 1) fs::remove(copy / "config.json");
      if (damage == 2) write_file(copy / "config.json", "{}");
    }
    const StagedCheckpoint again = stage_checkpoint(kDemo, folder.path(), always, comm);
    EXPECT_EQ(again.folder, copy);
    EXPECT_EQ(again.bytes > 0, comm.rank() == 0);
    expect_copy(kDemo, copy);
  }
}

TEST(Staging, ThatIsBrokenOffOrWasKilledLeavesNothing) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  int asked = 0;
  const StagedCheckpoint staged = stage_checkpoint(
      kDemo, folder.path(), [&](std::uint64_t, std::uint64_t) { return ++asked < 2; }, comm);
  EXPECT_EQ(staged.folder, kDemo);
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>());
  EXPECT_EQ(asked, comm.rank() == 0 ? 2 : 0);

  comm.barrier();
  const fs::path copy = folder.path() / ("demo-" + Checkpoint(kDemo).fingerprint());
  if (comm.rank() == 0) {  // as a killed one leaves it
    fs::create_directory(copy.string() + ".part");
    write_file(copy.string() + ".part/config.json", "half of i");
  }
  stage_checkpoint(kDemo, folder.path(), always, comm);
  expect_copy(kDemo, copy);
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{copy.filename().string()});
}

TEST(Staging, WaitsForAnotherJobsCopy) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const fs::path copy = folder.path() / ("demo-" + Checkpoint(kDemo).fingerprint());
  int lock = -1;
  if (comm.rank() == 0) {
    lock = ::open((copy.string() + ".lock").c_str(), O_RDWR | O_CREAT, 0666);
    ASSERT_EQ(::flock(lock, LOCK_EX), 0);
  }
  int asked = 0;
  const auto staged = stage_checkpoint(
      kDemo, folder.path(),
      [&](std::uint64_t copied, std::uint64_t) {
        if (lock >= 0) {
          EXPECT_EQ(copied, 0U);
          EXPECT_FALSE(fs::exists(copy));
          if (++asked == 3) {
            ::close(lock);
            lock = -1;
          }
        }
        return true;
      },
      comm);
  EXPECT_EQ(asked, comm.rank() == 0 ? 3 : 0);
  expect_copy(kDemo, staged.folder);
}

TEST(Staging, OnAFullDiskSaysSoOnEveryRank) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  const fs::path disk_path = folder.path() / "small";
  const std::uint64_t bytes = bytes_of(Checkpoint(kDemo));
  const std::string size = "size=" + std::to_string(bytes + (1U << 16U));
  const SmallDisk disk(disk_path, size.c_str(), 0, comm);
  if (!disk.is_mounted()) GTEST_SKIP() << "mounting a small tmpfs needs root";
  const auto expected = AllOf(
      HasSubstr(disk_path.string() + ": no room for the checkpoint: " + std::to_string(bytes) + " bytes are needed, "),
      HasSubstr("leave out --stage-to"));
  // It fills behind the first file.
  EXPECT_THAT(error_text([&] {
                stage_checkpoint(
                    kDemo, disk_path,
                    [&](std::uint64_t, std::uint64_t) {
                      if (!fs::exists(disk_path / "other"))
                        write_file(disk_path / "other", std::string(1U << 18U, 'x'));
                      return true;
                    },
                    comm);
              }),
              AllOf(expected, HasSubstr("could be written and no more")));
  comm.barrier();
  EXPECT_EQ(names_in(disk_path), std::set<std::string>{"other"});
  EXPECT_THAT(error_text([&] { stage_checkpoint(kDemo, disk_path, always, comm); }),
              AllOf(expected, HasSubstr(" are free")));
  comm.barrier();
  EXPECT_EQ(names_in(disk_path), std::set<std::string>{"other"});
  comm.barrier();
  if (comm.rank() == 0) fs::remove(disk_path / "other");
  expect_copy(kDemo, stage_checkpoint(kDemo, disk_path, always, comm).folder);
}

TEST(Staging, OfAFolderThatIsNoCheckpointFailsOnEveryRank) {
  const Communicator comm = Communicator::world();
  const SharedFolder folder(comm);
  EXPECT_THAT(error_text([&] { stage_checkpoint(folder.path() / "none", folder.path() / "disk", always, comm); }),
              HasSubstr((folder.path() / "none").string() + ": not a folder"));
  EXPECT_FALSE(fs::exists(folder.path() / "disk"));
}

}  // namespace
}  // namespace switchyard
