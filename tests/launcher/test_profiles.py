"""Cluster profiles: what they may say, and how a mistake in one is told."""

import pytest

from launcher.profiles import load_profile, names


@pytest.fixture
def profile_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_the_example_profiles_are_valid_and_cover_what_clusters_differ_in():
    profiles = {name: load_profile(name) for name in names()}
    assert set(profiles) == {"efa", "h100-infiniband", "plain", "practice", "university"}
    assert {profile.container.kind for profile in profiles.values() if profile.container} == {"pyxis", "apptainer"}
    assert [name for name, profile in profiles.items() if profile.practice] == ["practice"]


def test_an_unknown_profile_names_the_nearest_and_a_path_is_taken_as_one(profile_file):
    with pytest.raises(ValueError, match=r"--cluster h100-infinband: no such profile .* did you mean h100-infiniband"):
        load_profile("h100-infinband")
    with pytest.raises(ValueError, match="there are efa, h100-infiniband"):
        load_profile("zzz")
    assert load_profile(profile_file("gpus_per_node: 3")).num_ranks == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partiton: gpu", "partiton: unknown key; did you mean 'partition'"),
        ("health: {levle: full}", r"health.levle: unknown key; did you mean 'level'"),
        ("container: {kind: docker, image: x}", "container.kind: found 'docker'; allowed: 'pyxis' or 'apptainer'"),
        ('partition: "a\\nb"', "partition: found"),
        ("environment: {'A B': x}", "environment"),
        ("time: tomorrow", "time: found 'tomorrow'"),
        ("sbatch: [exclusive]", r"sbatch\[0\]: found 'exclusive'"),
        ("gpus_per_node: 2\nranks_per_node: 3", "ranks_per_node: 3 is more than gpus_per_node 2"),
        ("gpu_type: h100", "gpu_type: gpus_per_node is 0"),
        ("shared_paths: [home]", "shared_paths: 'home' is not an absolute path"),
        ("shared_paths: []", "shared_paths: is empty"),
        ("lemons: {file: nodes.jsonl}", "lemons.file: 'nodes.jsonl' is not an absolute path"),
        (
            "restarts_without_progress: 4",
            r"restarts_without_progress: is told by cause now; write restarts: {broken: 4}",
        ),
        ("restarts: {brokn: 4}", "restarts.brokn: unknown key; did you mean 'broken'"),
    ],
)
def test_a_mistake_in_a_profile_is_one_sentence_with_file_and_key(profile_file, text, words):
    path = profile_file(text)
    with pytest.raises(ValueError, match=words) as told:
        load_profile(path)
    assert str(told.value).startswith(path)


def test_an_option_that_a_key_sets_or_that_ranks_need_is_refused_by_name(profile_file):
    with pytest.raises(
        ValueError, match=r"sbatch\[0\]: found '--export=NONE'; --export: the key `environment` sets it"
    ):
        load_profile(profile_file("sbatch: ['--export=NONE']"))
    with pytest.raises(ValueError, match=r"srun\[1\]: .*--export: the key `environment` sets it"):
        load_profile(profile_file("srun: ['--mpi=none', '--export=NONE']"))
    with pytest.raises(ValueError, match=r"sbatch\[0\]: .*-t: the key `time` sets it"):
        load_profile(profile_file("sbatch: ['-t5']"))
    assert load_profile(profile_file("srun: ['--mem=0', '--exclusive']")).srun


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("time: 24:00:00", "time: found 86400"),
        ("account: 01234", "account: found 668"),
        ("partition: no", "partition: found False"),
        ("memory: 0", "memory: found 0"),
        ("environment: {OMP_NUM_THREADS: 8}", "environment.OMP_NUM_THREADS: found 8"),
    ],
)
def test_what_yaml_reads_as_a_number_without_quotes_is_to_be_quoted(profile_file, text, found):
    with pytest.raises(ValueError, match=f"{found}; without quotes YAML reads it so .*; quote it"):
        load_profile(profile_file(text))


def test_a_time_in_a_profile_is_kept_as_slurm_writes_it(profile_file):
    assert load_profile(profile_file("time: 36h")).time == "1-12:00:00"
    with pytest.raises(ValueError, match="time: found 'tomorrow'; 'tomorrow' is not a time limit; allowed: 90"):
        load_profile(profile_file("time: tomorrow"))


def test_staged_ranks_use_the_python_of_the_archive_alone(profile_file):
    stage_in = "stage_in: {archive: /shared/env.tar, to: /local}"
    assert load_profile(profile_file(stage_in)).stage_in.python == "bin/python"
    with pytest.raises(ValueError, match="stage_in: python says already what Python ranks use"):
        load_profile(profile_file(f"{stage_in}\npython: /usr/bin/python3"))
    with pytest.raises(ValueError, match="stage_in: container says already"):
        load_profile(profile_file(f"{stage_in}\ncontainer: {{kind: pyxis, image: x}}"))
