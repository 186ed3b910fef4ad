"""The queue and the schedules under fire, at sizes that take seconds."""

from workbench.benchmarks.queueing import bench_queue, bench_schedule


def test_queued_notebooks_of_which_some_are_killed_all_end_in_their_true_state():
    figures = bench_queue(runs=8, kills=2)
    assert (figures["lost"], figures["twice"], figures["untrue"], figures["left_behind"]) == (0, 0, 0, 0), figures
    assert sum(figures["statuses"].values()) == 8
    assert figures["statuses"]["done"] >= 6
    assert figures["dispatcher_killed"] == 1


def test_a_schedule_whose_schedulers_are_killed_fires_each_time_once():
    figures = bench_schedule(firings=10, seconds=1, restarts=2)
    assert (figures["missing"], figures["twice"], figures["runs_of_no_firing"]) == (0, 0, 0), figures
    assert figures["begun"] == figures["runs"] == figures["places_in_the_queue"] == 10
    assert figures["restarts"] == 2
