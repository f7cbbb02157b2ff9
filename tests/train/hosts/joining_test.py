import pytest

from train.hosts.joining import told_by, way_to_join, words_alone

SLURM = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize(
  ("environment", "who"),
  [
    ({}, ""),
    (SLURM, "Slurm"),
    (SLURM | {"SLURM_NTASKS": "1"}, ""),
    ({"SLURM_NTASKS": "2"}, ""),  # a script of sbatch: no step of several tasks
    ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, "Kubernetes"),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""),
    ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, "a TPU pod slice"),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, ""),
  ],
)
def test_the_environment_says_whether_there_are_others(environment, who):
  assert told_by(environment) == who
  assert way_to_join(None, None, None, environment) == ({} if who else None)
  assert way_to_join(None, 1, None, environment) is None
  assert way_to_join("auto", None, None, environment) == {}
  wanted = {"coordinator_address": "node1:4000", "num_processes": 2, "process_id": 1}
  assert way_to_join("node1:4000", 2, 1, environment) == wanted


@pytest.mark.parametrize(
  ("given", "words"),
  [
    (("node1:4000", 2, None), "go together, and --process is not given"),
    ((None, 2, None), "go together, and --coordinator and --process are not given"),
    (("node1", 2, 0), "--coordinator is 'node1'; wanted HOST:PORT"),
    (("node1:4000", 2, 2), "--process is 2 of --processes=2; the numbers are 0 to 1"),
    (("node1:4000", 0, 0), "--process is 0 of --processes=0"),
  ],
)
def test_what_is_given_by_halves_is_named(given, words):
  with pytest.raises(ValueError, match=words):
    way_to_join(*given, {})


def test_what_comes_next_does_not_join():
  words = ["--config", "a.py", "-coordinator=n:1", "--processes", "2", "--process", "0", "--wait=9", "--workdir=runs/a"]
  assert words_alone(words) == ["--config", "a.py", "--workdir=runs/a"]
