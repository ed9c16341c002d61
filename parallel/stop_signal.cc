#include "parallel/stop_signal.h"

#include <unistd.h>

#include <csignal>
#include <initializer_list>

namespace switchyard {
namespace {

volatile std::sig_atomic_t caught = 0;

extern "C" void remember_signal(int signal) {
  if (caught != 0) ::_exit(128 + signal);
  caught = signal;
}

}  // namespace

void catch_stop_signals() {
  struct sigaction action = {};
  action.sa_handler = remember_signal;
  action.sa_flags = SA_RESTART;  // a system call in flight goes on: the step ends as if nothing had come
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) ::sigaction(signal, &action, nullptr);
}

int stop_signal() { return caught; }

}  // namespace switchyard
