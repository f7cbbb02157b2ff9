"""A Ray cluster of three nodes on this machine. It writes a file for the whole machine, so it runs alone."""

import os

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@pytest.fixture(scope="session")
def ray():
  if "PYTEST_XDIST_WORKER" in os.environ:
    pytest.skip("a cluster of this machine runs alone: make test-cluster")
  return pytest.importorskip("ray", reason="Ray is not installed: make test-cluster")


@pytest.fixture(scope="session")
def cluster(ray):
  """Returns the cluster, which this process is connected to."""
  from ray.cluster_utils import Cluster

  found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
  for _ in range(2):
    found.add_node(num_cpus=1)
  found.wait_for_nodes()
  ray.init(found.address, configure_logging=False, log_to_driver=False)
  yield found
  ray.shutdown()
  found.shutdown()
