"""slurm/*.sh on a real Slurm: a chain of jobs, and runs that are stopped, killed, requeued and moved give every token exactly once.
Started by cluster.sh with four nodes; the tests run beside each other, since they mostly wait for jobs."""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "integration"))
import support  # noqa: E402  found through the line above

SCRIPTS = support.TESTS.parent / "slurm"
CLUSTER = pathlib.Path(os.environ["CLUSTER"])
FAULTS = os.environ["SWITCHYARD_FAULT_LIBRARY"]
PATIENCE = 240  # seconds for what takes few on an idle machine


def output_of(*words):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, words))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def job_facts(job):
    """What Slurm says of a job, by name: JobState, Restarts, NumNodes, ..."""
    return dict(word.split("=", 1) for word in output_of("scontrol", "show", "job", "--oneliner", job).split() if "=" in word)


def controller_log():
    """What slurmctld did with the jobs of all tests: where a job ran, which node was lost, who asked for a requeue."""
    return (CLUSTER / "log" / "slurmctld.log").read_text()


class Run:
    """A run that submit.sh submitted."""

    def __init__(self, test, name="run", nodes="2", array=False, partition="steady", slow=0, site="", config=""):
        """slow: milliseconds that each layer's exchange takes longer, until hurry() is called."""
        self.test = test
        self.out = test.folder / name
        self.slow_file = test.folder / f"{name}.slow"
        preload = ""
        if slow:
            self.slow_file.touch()
            preload = f'CONTAINER="env LD_PRELOAD={FAULTS} SWITCHYARD_SLOW={slow}:{self.slow_file}"\n'
        self.site = test.folder / f"{name}.env"
        self.site.write_text(f"SWITCHYARD={support.BINARY}\nPARTITION={partition}\n{preload}{site}\n")
        self.config = test.folder / f"{name}.ini"
        corpora = "".join(f"corpus = {corpus}\n" for corpus in test.corpora)
        self.config.write_text(f"# a run\nmodel = {support.DEMO}\n{corpora}out = {self.out}\n{test.options}{config}")
        self.words = ["--config", self.config, "--site", self.site, *(["--array"] if array else [])]
        self.submit(nodes)

    def submit(self, nodes):
        self.printed = output_of(SCRIPTS / "submit.sh", *self.words, "--nodes", nodes)
        self.jobs = dict(re.findall(r"^(\w+) +job (\d+) ", self.printed, re.M))
        self.test.assertEqual(list(self.jobs), ["route", "reduce", "compare", "report"])

    def hurry(self):
        self.slow_file.unlink(missing_ok=True)

    def state(self, job="route"):
        return job_facts(self.jobs[job])["JobState"]

    def restarts(self):
        return int(job_facts(self.jobs["route"])["Restarts"])

    def manifest(self, part=""):
        path = self.out / part / "manifest.jsonl"
        return path.read_text().splitlines(keepends=True) if path.exists() else []

    def log(self):
        return "".join(path.read_text() for path in sorted((self.out / "slurm").glob("route-*.log")))

    def status(self):
        return output_of(SCRIPTS / "status.sh", self.out)

    def wait(self, what, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                self.test.fail(f"waited {PATIENCE} s for {what}\n{self.status()}\n{self.log()}\n{output_of('squeue', '--states=all')}")
            time.sleep(0.3)

    def wait_for_segments(self, more):
        """Until that many more are committed, in a run that still goes on."""
        wanted = len(self.manifest()) + more
        self.wait(f"{wanted} segments", lambda: len(self.manifest()) >= wanted)
        self.test.assertEqual(self.state(), "RUNNING")

    def wait_for_restart(self, number=1):
        self.wait(f"restart {number}", lambda: self.restarts() >= number and self.state() != "COMPLETING")

    def wait_for_end(self):
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait("the chain's end", lambda: all(self.state(job) in ended for job in self.jobs))

    def finish(self):
        """Lets the chain end and compares what it leaves with the uninterrupted run."""
        self.hurry()
        self.wait_for_end()
        self.test.assertEqual({job: self.state(job) for job in self.jobs}, dict.fromkeys(self.jobs, "COMPLETED"), self.log())
        self.test.assert_same_rows(self.test.reference / "routing.h5", self.out / "routing.h5")
        self.test.assert_same_statistics(self.out)
        self.test.assertIn("complete", self.status())


class Slurm(support.TestCase):
    options = "context = 100\nbatch-tokens = 300\nblock-tokens = 1500\ncommit-seconds = 0\nprecision = f32\nthreads = 1\n"

    @classmethod
    def setUpClass(cls):
        cls.folder = CLUSTER / "reference"
        cls.folder.mkdir()
        cls.corpora = []
        for seed, name in enumerate(("first", "second")):
            path = cls.write_text_corpus(cls, f"{name}.jsonl", documents=60, seed=seed)
            cls.corpora.append(f"{name}={path},id=id,category=kind")
        cls.reference = cls.folder / "run"
        config = cls.folder / "run.ini"
        config.write_text(f"model = {support.DEMO}\n" + "".join(f"corpus = {corpus}\n" for corpus in cls.corpora) + cls.options)
        output_of(*support.command("route", "--config", config, "--out", cls.reference, "--quiet"))

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=CLUSTER))  # goes with the cluster

    def assert_same_statistics(self, out):
        expected, found = support.integer_tables(self.reference / "stats.h5"), support.integer_tables(out / "stats.h5")
        self.assertEqual(sorted(expected), sorted(found))
        self.assertGreater(len(expected), 10)
        for name, table in expected.items():
            self.assertEqual(table.tolist(), found[name].tolist(), name)

    def test_chain(self):
        disk = self.folder / "disk"  # of both nodes, as they are one host
        run = Run(self, site=f"TASKS_PER_NODE=2\nCPUS_PER_TASK=1\nSTAGE_TO={disk}", slow=30)
        again = subprocess.run([SCRIPTS / "submit.sh", *run.words], capture_output=True, text=True, check=False)
        self.assertEqual(again.returncode, 2)
        self.assertIn("still in the queue", again.stderr)
        run.finish()
        facts = [job_facts(job) for job in run.jobs.values()]
        for before, after in zip(facts, facts[1:]):
            self.assertLessEqual(before["EndTime"], after["StartTime"])
        environment = json.loads((run.out / "run.json").read_text())["environment"]
        self.assertEqual(environment["ranks"], 4)
        self.assertEqual(len(set(environment["hosts"])), 2)
        self.assertRegex(run.log(), f"(?m)^staged .* on 1 node to {disk} ")
        self.assertEqual(len([path for path in disk.iterdir() if path.is_dir()]), 1)
        for name in ("routing.h5", "stats.h5", "compare.h5", "report.html"):
            self.assertIn(f"{run.out / name}\n", run.printed)
            self.assertTrue((run.out / name).is_file(), name)
        with support.h5py.File(run.out / "compare.h5") as file:
            self.assertGreater(len(file), 1)
        self.assertIn("last error: none", run.status())

    def test_array_of_corpora(self):
        run = Run(self, array=True, nodes="1", slow=100)
        tasks = [f"{run.jobs['route']}_{task}" for task in (0, 1)]
        run.wait("segments of both tasks", lambda: run.manifest("first") and run.manifest("second"))
        output_of("scancel", "--signal=USR1", tasks[1])
        run.wait("a restart", lambda: job_facts(tasks[1])["Restarts"] == "1")
        self.assertRegex(run.status(), r"(?m)^first: \d+ segments.*\nsecond: \d+ segments")
        run.hurry()
        run.wait_for_end()
        self.assertEqual([job_facts(task)["JobState"] for task in tasks], ["COMPLETED"] * 2, run.log())
        self.assertEqual(run.state("report"), "COMPLETED")
        self.assertEqual(job_facts(tasks[0])["Restarts"], "0")
        self.assert_same_statistics(run.out)
        expected = support.rows(self.reference / "routing.h5")
        parts = [support.rows(run.out / name / "routing.h5") for name in ("first", "second")]
        self.assertGreater(min(len(part["tokens/id"]) for part in parts), 1000)
        for name in [name for name in expected if name.startswith(("tokens/id", "tokens/predicted", "routing/"))]:
            joined = support.np.concatenate([part[name] for part in parts])
            self.assertEqual(joined.tobytes(), expected[name].tobytes(), name)

    def test_signals_stop_and_requeue(self):
        """To the ranks alone, as at preemption; to the batch script alone, as before a time limit; to both, and to srun between them."""
        run = Run(self, slow=100)
        for number, words in enumerate(([], ["--batch"], ["--full"]), start=1):
            run.wait_for_segments(2)
            self.assert_progress(run)
            self.assertRegex(run.status(), rf"route +{run.jobs['route']} RUNNING")
            before = run.manifest()
            output_of("scancel", "--signal=USR1", *words, run.jobs["route"])
            run.wait_for_restart(number)
            self.assertEqual(len(re.findall("exit code 85, .* requeued", run.log())), number, run.log())
            self.assertEqual(run.manifest()[:len(before)], before)
        run.finish()
        self.assertEqual(run.restarts(), 3)

    def assert_progress(self, run):
        """Waits for a status that tells all; the first segments of a session need not tell a pace."""
        line = re.compile(r"^run: (\d+) segments, (\d+) blocks, ([\d,]+) tokens, ([\d.]+) % done, [\d,]+ tokens/s, ETA \d+ (s|min) \(last segment \d+ s ago\)$", re.M)
        run.wait("a pace", lambda: line.search(run.status()))
        before = [json.loads(text) for text in run.manifest()]
        told = line.search(run.status())
        segments = [json.loads(text) for text in run.manifest()]
        self.assertIn(int(told[1]), range(len(before), len(segments) + 1))
        segments = segments[:int(told[1])]
        self.assertEqual(int(told[2]), sum(segment["details"]["blocks"] for segment in segments))
        self.assertEqual(int(told[3].replace(",", "")), sum(segment["tokens"] for segment in segments))
        self.assertAlmostEqual(float(told[4]), 100 * segments[-1]["details"]["share"], delta=0.051)

    def test_time_limit(self):
        run = Run(self, slow=250, site="TIME=1\nWARN_SECONDS=10")
        run.wait_for_restart()
        self.assertGreater(len(run.manifest()), 0)
        self.assertRegex(run.log(), "exit code 85, .* requeued")
        run.finish()

    def test_requeue_by_an_operator(self):
        run = Run(self, slow=100)
        run.wait_for_segments(2)
        output_of("scontrol", "requeue", run.jobs["route"])
        run.wait_for_restart()
        run.finish()
        self.assertEqual(run.restarts(), 1)  # the batch script has not requeued it once more

    def test_killed_rank(self):
        run = Run(self, slow=100)
        run.wait_for_segments(2)
        ranks = self.ranks_of(run)
        self.assertEqual(len(ranks), 2)
        before = run.restarts()
        killed = time.monotonic()
        os.kill(ranks[1], signal.SIGKILL)
        run.wait_for_restart(before + 1)
        self.assertLess(time.monotonic() - killed, 60)
        self.assertIn("exit code 137", run.log())
        self.assertRegex(run.status(), r"last error: .*exit code 137, \d+ segments committed; requeued")
        run.finish()

    def test_lost_node(self):
        """Of three nodes one's slurmd is killed, its rank lives on: the run continues on the two that are left."""
        run = Run(self, nodes="2-3", partition="frail", slow=250)
        run.wait_for_segments(2)
        self.assertEqual(job_facts(run.jobs["route"])["NumNodes"], "3")
        before = run.restarts()  # not 0 where a busy machine let the first start fail
        os.kill(int((CLUSTER / "n4.pid").read_text()), signal.SIGKILL)
        run.wait_for_restart(before + 1)
        run.finish()
        self.assertEqual(job_facts(run.jobs["route"])["NumNodes"], "2")
        self.assertEqual(json.loads((run.out / "run.json").read_text())["environment"]["ranks"], 2)

    def test_cancelled_run_stays_cancelled_and_continues_on_fewer_nodes(self):
        run = Run(self, nodes="3", slow=100)
        run.wait_for_segments(2)
        output_of("scancel", run.jobs["route"])
        run.wait_for_end()
        self.assertEqual({job: run.state(job) for job in run.jobs}, dict.fromkeys(run.jobs, "CANCELLED"), run.log())
        before = run.manifest()
        run.submit("2")
        run.finish()
        self.assertEqual(run.manifest()[:len(before)], before)
        self.assertEqual(json.loads((run.out / "run.json").read_text())["environment"]["ranks"], 2)

    def test_gives_up_when_restarts_commit_nothing(self):
        die = self.folder / "die"
        die.write_text("#!/bin/sh\nkill -9 $$\n")
        die.chmod(0o755)
        run = Run(self, site=f"CONTAINER={die}\nIDLE_RESTARTS=1")
        run.wait_for_end()
        self.assertEqual(run.state(), "FAILED", run.log())
        self.assertEqual(run.restarts(), 1)
        self.assertEqual({run.state(job) for job in ("reduce", "compare", "report")}, {"CANCELLED"})
        self.assertRegex(run.status(), "run: not started\n(.*\n)*last error: .*1 restarts in a row committed no segment")

    def test_wrong_option_fails_at_once(self):
        run = Run(self, config="contexts = 3\n")
        run.wait_for_end()
        self.assertEqual(run.state(), "FAILED", run.log())
        self.assertEqual(run.restarts(), 0)
        self.assertEqual(run.state("report"), "CANCELLED")
        self.assertRegex(run.status(), "last error: switchyard: .*contexts")

    def test_without_slurm(self):
        """A dry run, status.sh and errors of usage on a machine without Slurm."""
        tools = self.folder / "bin"
        tools.mkdir()
        for name in "bash env sed grep awk cat cut tail sort date stat find realpath basename dirname paste".split():
            (tools / name).symlink_to(shutil.which(name))
        env = {"PATH": str(tools)}
        config = self.folder / "run.ini"
        config.write_text(f"model = {support.DEMO}\n" + "".join(f"corpus = {c}\n" for c in self.corpora) + f"out = {self.folder / 'run'}  # here\n")
        site = self.folder / "site.env"
        site.write_text('PARTITION=gpu\nACCOUNT=me\nTIME=1:00:00\nTASKS_PER_NODE=4\nCPUS_PER_TASK=8\nGPUS_PER_NODE=4\nSBATCH_OPTIONS=("--mem=0")\n')

        def submit(*words):
            return subprocess.run([SCRIPTS / "submit.sh", *words], env=env, capture_output=True, text=True, check=False)

        dry = submit("--config", config, "--site", site, "--nodes", "2-4", "--dry-run")
        self.assertEqual(dry.returncode, 0, dry.stderr)
        for line in ("--partition=gpu", "--account=me", "--time=1:00:00", "--nodes=2-4", "--ntasks-per-node=4", "--cpus-per-task=8", "--gpus-per-node=4", "--mem=0",
                     "--signal=B:USR1@120", "--requeue"):
            self.assertIn(f"#SBATCH {line}\n", dry.stdout)
        self.assertEqual(re.findall(r"^== (\w+): sbatch( --dependency=afterok:ID_OF_\w+)?", dry.stdout, re.M),
                         [("route", ""), ("reduce", " --dependency=afterok:ID_OF_route"), ("compare", " --dependency=afterok:ID_OF_reduce"),
                          ("report", " --dependency=afterok:ID_OF_compare")])
        self.assertIn("#SBATCH --array=0-1\n", submit("--config", config, "--array", "--dry-run").stdout)
        self.assertFalse((self.folder / "run").exists())
        (self.folder / "empty.ini").write_text("model = m\ncorpus = a=b\n#out = c\n")
        for words, message in (([], "--config"), (["--config", "none.ini"], "none.ini"), (["--config", config, "--nodes", "many"], "--nodes"),
                               (["--config", config, "--site", "none.env"], "none.env"), (["--config", self.folder / "empty.ini"], "out = "),
                               (["--config", config, "--fast"], "--fast"), (["--config"], "missing"), (["--config", config], "--dry-run")):
            done = submit(*words)
            self.assertEqual(done.returncode, 2, words)
            self.assertRegex(done.stderr, rf"^submit.sh: .*{re.escape(message)}.*\n$")
        status = subprocess.run([SCRIPTS / "status.sh", self.reference], env=env, capture_output=True, text=True, check=False)
        self.assertEqual(status.returncode, 0, status.stderr)
        self.assertRegex(status.stdout, r"^run: \d+ segments, \d+ blocks, \d\d,\d{3} tokens, complete\njobs: none were submitted")
        (self.folder / "run" / "slurm").mkdir(parents=True)
        (self.folder / "run" / "slurm" / "jobs").write_text("route 1\n")
        status = subprocess.run([SCRIPTS / "status.sh", self.folder / "run"], env=env, capture_output=True, text=True, check=False)
        self.assertEqual(status.stdout, "run: not started\njobs: unknown, Slurm is not here\nlast error: none\n")
        self.assertEqual(subprocess.run([SCRIPTS / "status.sh", self.folder / "none"], env=env, capture_output=True, check=False).returncode, 2)

    def test_a_controller_too_busy_to_answer_is_asked_again(self):
        """The route job's script alone, its ranks killed, against a scontrol whose answers are given: True, that it was told, or what it shows."""
        ours, anew, gone = "JobId=7 JobState=RUNNING Restarts=0 x", "JobId=7 JobState=RUNNING Restarts=1 x", "JobId=7 JobState=PENDING Restarts=1 x"
        for name, answers, end in (("at once", (ours, True), "requeued"), ("shown late", (None, None, ours, True), "requeued"), ("told late", (ours, None, ours, True), "requeued"),
                                   ("done, but told nobody", (ours, None, gone), "requeued"), ("started anew meanwhile", (ours, None, None, anew), "requeued"),
                                   ("another start's", (anew,), "not requeued: for Slurm this start of the job is over"), ("never shown", 6 * (None,), "not requeued: for Slurm this start of the job is over"),
                                   ("never told", (ours, *(6 * (None, ours))), "error: it cannot be requeued; submit the run again to continue it")):
            with self.subTest(name):
                folder = self.folder / name
                folder.mkdir()
                for i, answer in enumerate(answers):
                    (folder / f"answer{i}").write_text("" if answer is None else "told" if answer is True else answer)
                script = f'''set -u
                    folder=$PWD; configs=(run.ini); runs=($PWD/run); IDLE_RESTARTS=3; STAGE_TO=
                    launch() {{ return 137; }}
                    sleep() {{ :; }}
                    scontrol() {{
                      local call; call=$(cat calls 2>/dev/null | wc -l); echo "$1" >>calls
                      [ -s "answer$call" ] || {{ echo 'Socket timed out on send/recv operation' >&2; return 1; }}
                      cat "answer$call"
                    }}
                    . {SCRIPTS / "route_body.sh"}'''
                env = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1"}
                for unset in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT"):
                    env.pop(unset, None)
                done = subprocess.run(["bash", "-c", script], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=60)
                self.assertEqual(done.returncode, 137, done.stderr)
                self.assertRegex(done.stderr.splitlines()[-1] if "error: it" in end else done.stderr, rf"(?m)^route job 7, start 1: .*{re.escape(end)}$")
                self.assertEqual("it cannot be requeued" in done.stderr, "cannot" in end, done.stderr)
                asked = (folder / "calls").read_text().split()
                self.assertEqual(len(asked), len(answers), asked)
                for word, answer in zip(asked, answers):
                    self.assertIn((word, answer is True), (("show", False), ("requeue", False), ("requeue", True)))

    def ranks_of(self, run):
        """Process ids of the ranks that route into this run's folder."""
        found = []
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            if words[0] == support.BINARY.encode() and str(run.out).encode() in words:
                found.append(int(entry.name))
        return found


class Beside(unittest.TestSuite):
    """Runs its tests beside each other."""

    def run(self, result, debug=False):
        tests = list(self)
        Slurm.setUpClass()
        with concurrent.futures.ThreadPoolExecutor(len(tests)) as pool:
            for test, alone, seconds in pool.map(self.run_alone, tests):
                result.startTest(test)
                for failure in alone.failures + alone.errors:
                    result.addFailure(test, (AssertionError, AssertionError(f"{failure[1]}\n{controller_log()}"), None))
                if alone.wasSuccessful():
                    result.addSuccess(test)
                result.stopTest(test)
                print(f"{seconds:.0f} s", file=sys.stderr)
        return result

    @staticmethod
    def run_alone(test):
        start = time.monotonic()
        alone = unittest.TestResult()
        test.run(alone)
        return test, alone, time.monotonic() - start


def load_tests(loader, tests, pattern):
    return Beside(loader.loadTestsFromTestCase(Slurm))


if __name__ == "__main__":
    support.main()
