"""Nodes that failed: how they are counted, which are left out, and how they come back."""

from common.json_lines import Lines, read_lines
from launcher import nodes
from launcher.profiles import ClusterProfile, LemonsConfig

NOW, DAY, HOUR = 1_800_000_000.0, 86400, 3600
RULE = LemonsConfig()


def failed(*lines: tuple[float, str, str]) -> Lines:
    """Failures so many days ago, of a node, by a cause."""
    records = [{"time": NOW - days * DAY, "node": node, "cause": cause} for days, node, cause in lines]
    return Lines(records, [])


def found(*lines: tuple[float, str, str], rule: LemonsConfig = RULE) -> dict[str, nodes.Node]:
    return {node.name: node for node in nodes.failing_nodes(failed(*lines), rule, NOW)}


def test_a_node_that_failed_three_times_in_a_week_is_left_out_until_the_oldest_is_a_week_old():
    node = found((5, "a", "lost"), (3, "a", "unhealthy"), (1, "a", "lost"), (1, "b", "lost"))["a"]
    assert (node.points, node.until) == (3, NOW + 2 * DAY)
    assert node.in_words == "2 lost, 1 unhealthy"
    assert found((8, "a", "lost"), (3, "a", "lost"), (1, "a", "lost"))["a"].until is None


def test_a_wrong_result_alone_leaves_a_node_out_and_weights_may_say_otherwise():
    assert found((1, "a", "corrupt"))["a"].until == NOW + 6 * DAY
    mild = LemonsConfig.model_validate({"weights": {"corrupt": 1}, "points": 2, "days": 2})
    assert found((1, "a", "corrupt"), rule=mild)["a"].until is None
    assert found((1.5, "a", "corrupt"), (0.5, "a", "hang"), rule=mild)["a"].until == NOW + 0.5 * DAY


def test_one_outage_that_many_jobs_met_counts_once_and_by_its_worst_cause():
    minute = 1 / 1440
    outage = [(1 + number * 30 * minute, "a", "lost") for number in range(5)]
    assert found(*outage)["a"].points == 1
    assert found(*outage, (1 - 30 * minute, "a", "corrupt"))["a"].points == 3


def test_an_unknown_cause_has_no_points_and_a_time_to_come_is_left_out():
    assert found((1, "a", "haunted"))["a"].points == 0
    assert found((-1, "a", "lost")) == {}


def test_a_node_that_was_forgotten_is_as_good_as_new(tmp_path):
    lines = [(3, "a", "corrupt"), (2, "a", nodes.FORGOTTEN), (1, "a", "lost"), (3, "b", "corrupt")]
    assert found(*lines)["a"].points == 1
    file = tmp_path / "deep" / "nodes.jsonl"
    nodes.forget(file, ["a"])
    assert read_lines(file, nodes.FAILURE)[0]["cause"] == nodes.FORGOTTEN


def test_never_so_many_are_left_out_that_a_job_could_not_run():
    worst_first = list(found((1, "a", "corrupt"), (2, "b", "corrupt"), (1, "b", "lost"), (1, "c", "corrupt")).values())
    choice = nodes.choose(worst_first, ["a", "b", "c", "d"], needed=2)
    assert [node.name for node in choice.left_out] == ["b", "a"]
    assert [node.name for node in choice.spared] == ["c"]
    assert nodes.choose(worst_first, ["a", "d"], needed=1).left_out[0].name == "a", "others are no part of it"
    assert nodes.choose(worst_first, ["a", "d"], needed=3) == nodes.Choice([], [worst_first[1]])


def test_the_file_is_the_users_own_by_the_profiles_name_unless_it_says_which(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/home/me/state")
    own = nodes.nodes_file("clusters/big.yaml", ClusterProfile())
    assert str(own) == "/home/me/state/shardline/nodes-big.jsonl"
    shared = ClusterProfile.model_validate({"lemons": {"file": "/group/nodes.jsonl"}})
    assert str(nodes.nodes_file("big", shared)) == "/group/nodes.jsonl"
