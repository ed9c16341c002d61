#include "parallel/stop_signal.h"

#include <unistd.h>

#include <csignal>
#include <ctime>
#include <initializer_list>

namespace switchyard {
namespace {

/// A scheduler delivers one request more than once: to the ranks, and to srun, which passes it on.
constexpr std::time_t kOneRequestSeconds = 2;

volatile std::sig_atomic_t caught = 0;
volatile std::time_t caught_at = 0;

std::time_t seconds_now() {
  struct timespec now = {};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec;
}

extern "C" void remember_signal(int signal) {
  if (caught == 0) {
    caught_at = seconds_now();
    caught = signal;
  } else if (seconds_now() > caught_at + kOneRequestSeconds) {
    ::_exit(128 + signal);
  }
}

}  // namespace

void catch_stop_signals() {
  struct sigaction action = {};
  action.sa_handler = remember_signal;
  action.sa_flags = SA_RESTART;  // a system call in flight goes on: the step ends as if nothing had come
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) sigaddset(&action.sa_mask, signal);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) ::sigaction(signal, &action, nullptr);
}

int stop_signal() { return caught; }

}  // namespace switchyard
