import pytest

from cluster.resources import Need, most_workers, nodes


def test_a_need_names_what_it_asks_for_and_nothing_else():
    need = Need(num_cpus=0.5, memory_bytes=1 << 30)
    assert need.named == {"CPU": 0.5, "memory": float(1 << 30)}
    assert Need(num_cpus=0).options == {"num_cpus": 0.0}
    with pytest.raises(ValueError, match="at least 0"):
        Need(num_gpus=-1)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_workers_are_counted_on_the_open_cluster():
    (node,) = nodes()
    assert node.num_cpus == 4
    assert most_workers(Need(num_cpus=1)) == 4
    assert most_workers(Need(num_cpus=0.1)) == 40
    assert most_workers(Need(num_cpus=3)) == 1
    assert most_workers(Need(num_cpus=1, num_gpus=1)) == int(min(4, node.num_gpus))
    assert most_workers(Need(memory_bytes=1 << 60)) == 0
