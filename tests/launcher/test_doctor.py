"""What `shardline doctor` looks at."""

from launcher.doctor import OPTIONAL, REQUIRED, examine


def test_it_says_of_every_attention_backend_whether_it_runs_here_and_what_auto_means():
    findings = {finding.what.removeprefix("attention backend "): finding for finding in examine()}
    assert {"auto", "flash", "varlen"} <= findings.keys()
    if "GPU" in findings:  # that is, none
        assert findings["auto"].found == "sdpa"
        assert all("needs a CUDA device" in findings[name].advice for name in ("flash", "varlen"))


def test_what_is_not_needed_to_train_is_never_called_bad():
    states = {finding.what: finding.state for finding in examine()}
    assert set(REQUIRED) | set(OPTIONAL) <= states.keys()
    assert all(states[name] != "bad" for name in OPTIONAL)
