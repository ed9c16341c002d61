"""Corpora of many files and of enormous ones: memory and time follow what is routed, not what there is."""

import os
import signal
import subprocess
import time

import h5py
import support

HOLE = 50 << 30  # bytes of a file that take no space on disk and read as NUL


class LargeCorpus(support.TestCase):
    def measured(self, *words):
        """Runs switchyard, which must succeed, and returns its output and its peak resident memory in MiB."""
        output = self.folder / "output"
        with output.open("w") as file:
            process = subprocess.Popen(support.command(*words), stdout=file, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        self.assertEqual(process.returncode, 0, output.read_text())
        return output.read_text(), usage.ru_maxrss / 1024

    def options(self, corpus, out, *more):
        return ["route", "--model", support.DEMO, "--corpus", f"text={corpus}", "--out", self.folder / out, "--context", 64, "--block-tokens", 1000,
                "--commit-seconds", 0, "--precision", "f32", "--threads", 1, "--quiet", *more]

    def lines(self, name, count):
        return "".join(f"{name} {i} of a text that a few tokens make\n" for i in range(count))

    def write_with_hole(self, name, front, hole, back=""):
        path = self.folder / name
        with path.open("wb") as file:
            file.write(front.encode())
            file.truncate(len(front) + hole)
            file.seek(0, os.SEEK_END)
            file.write(back.encode())
        return path

    def test_two_hundred_thousand_files(self):
        many = self.folder / "many"
        for shard in range(200):
            (many / f"shard-{shard:03d}").mkdir(parents=True)
            for i in range(1000):
                with open(many / f"shard-{shard:03d}" / f"document-{i:03d}.txt", "w") as file:
                    file.write(f"text {i} of shard {shard}\n")
        _, few_files = self.measured(*self.options(many / "shard-000", "few", "--dry-run"))
        output, all_files = self.measured(*self.options(many, "all", "--dry-run"))
        self.assertIn("200,000 files", output)
        self.assertLess(all_files - few_files, 48)  # about 130 bytes a file
        self.measured(*self.options(many, "run", "--max-documents", 1500))
        with h5py.File(self.folder / "run" / "routing.h5") as file:
            ids = [name.decode() for name in file["documents/id"][:]]
            self.assertEqual(ids, [f"shard-{i // 1000:03d}/document-{i % 1000:03d}.txt:0" for i in range(1500)])

    def test_little_of_an_enormous_file(self):
        front = self.lines("line", 300)
        small = self.folder / "small.txt"
        small.write_text(front)
        huge = self.write_with_hole("huge.txt", front, HOLE, "\nend\n")
        for name, limit in (("documents", ["--max-documents", 300]), ("tokens", ["--max-tokens", 2500])):
            with self.subTest(name):
                _, few = self.measured(*self.options(f"{small},split=line", f"small-{name}", *limit))
                _, all_bytes = self.measured(*self.options(f"{huge},split=line", f"huge-{name}", *limit))
                self.assertLess(all_bytes - few, 400)  # a line's first 64 MiB, on their way
                with h5py.File(self.folder / f"small-{name}" / "routing.h5") as a, h5py.File(self.folder / f"huge-{name}" / "routing.h5") as b:
                    self.assertGreater(len(a["tokens/id"]), 2000)
                    for table in ("tokens/id", "tokens/loss", "documents/n_tokens", "documents/truncated", "routing/layer_003/expert"):
                        self.assertEqual(a[table][:].tobytes(), b[table][:].tobytes(), table)

    def test_a_line_of_gigabytes_is_one_bad_document(self):
        front = "".join(f'{{"text": "{line}"}}\n' for line in self.lines("line", 200).splitlines())
        hole = 2 << 30
        corpus = self.write_with_hole("holed.jsonl", front, hole, "\n" + front.replace("line", "behind"))
        failed = support.run(*self.options(corpus, "failed"))
        self.assertEqual(failed.returncode, 1, failed.stderr)
        message = f"{corpus}:201: a line of {hole} bytes from byte {len(front)} on, more than the {256 << 20} allowed"
        self.assertIn(message, failed.stderr)
        self.assertIn("--on-bad-document=skip", failed.stderr)

        plain = self.folder / "plain.jsonl"
        plain.write_text(front + front.replace("line", "behind"))
        _, few = self.measured(*self.options(plain, "plain"))
        _, peak = self.measured(*self.options(corpus, "skipped", "--on-bad-document", "skip"))
        self.assertLess(peak - few, 700)  # what is kept of a line until its end is known, while a string grows
        with h5py.File(self.folder / "plain" / "routing.h5") as a, h5py.File(self.folder / "skipped" / "routing.h5") as b:
            self.assertEqual(b["corpora/skipped"][:].tolist(), [1])
            self.assertIn(message, b["corpora/skipped_places"][0].decode())
            self.assertGreater(len(a["tokens/id"]), 2000)
            self.assertEqual(a["tokens/id"][:].tobytes(), b["tokens/id"][:].tobytes())
            self.assertEqual(a["tokens/loss"][:].tobytes(), b["tokens/loss"][:].tobytes())

    def test_a_stop_signal_ends_the_choice_of_a_sample(self):
        corpus = self.write_with_hole("huge.txt", self.lines("line", 10), 1 << 40)
        process = subprocess.Popen(support.command(*self.options(f"{corpus},split=line", "run", "--sample", 5)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        log = self.folder / "run" / "log" / "rank-0000.log"
        deadline = time.monotonic() + 60
        while not (log.exists() and "model loaded" in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.5)  # reading goes on for minutes
        self.assertIsNone(process.poll())
        process.send_signal(signal.SIGUSR1)
        _, errors = process.communicate(timeout=20)
        self.assertEqual(process.returncode, 85, errors)
        self.assertIn("repeat the command", errors)


if __name__ == "__main__":
    support.main()
