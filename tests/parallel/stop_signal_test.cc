#include "parallel/stop_signal.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>

namespace switchyard {
namespace {

TEST(StopSignal, TheFirstIsRemembered) {
  EXPECT_EXIT(
      {
        catch_stop_signals();
        std::raise(SIGUSR1);
        ::_exit(stop_signal() == SIGUSR1 ? 0 : 1);
      },
      testing::ExitedWithCode(0), "");
}

TEST(StopSignal, RepetitionsAtOnceAreTheSameRequest) {
  EXPECT_EXIT(
      {
        catch_stop_signals();
        std::raise(SIGUSR1);
        std::raise(SIGUSR1);
        std::raise(SIGTERM);
        ::_exit(stop_signal() == SIGUSR1 ? 0 : 1);
      },
      testing::ExitedWithCode(0), "");
}

TEST(StopSignal, ALaterOneEndsTheProcess) {
  EXPECT_EXIT(
      {
        catch_stop_signals();
        std::raise(SIGUSR1);
        for (int i = 0; i < 100; ++i) {
          ::usleep(100'000);
          std::raise(SIGTERM);
        }
        ::_exit(1);
      },
      testing::ExitedWithCode(128 + SIGTERM), "");
}

}  // namespace
}  // namespace switchyard
