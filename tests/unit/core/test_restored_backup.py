"""etcd restored from a backup: versions go back, what was deleted is there again, what was made since is not."""

from __future__ import annotations

from typing import Any

from moefleet_operator import names
from moefleet_operator.core.events import Key
from moefleet_operator.core.store import Store


def pod(name: str, version: int) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "models",
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
            "labels": names.replica_labels("chat", "11111111", 0),
            "ownerReferences": [{"uid": "fleet-uid", "controller": True}],
        },
        "spec": {"nodeName": "n1", "containers": []},
        "status": {"phase": "Running"},
    }


def test_a_restored_backup_is_believed_after_two_lists_that_are_older_than_one_before() -> None:
    store = Store()
    store.apply("MoEFleet", Key("models", "chat"), {"metadata": {"uid": "fleet-uid"}, "spec": {}})
    store.relisted("Pod", (pod("a", 110), pod("b", 120)), as_of=150)
    store.apply("Pod", Key("models", "a"), pod("a", 160))
    store.apply("Pod", Key("models", "b"), None, "uid-b")
    # The backup was taken at 115: a is as it was then, b was not there, c has been forgotten by nobody but us.
    backup = (pod("a", 90), pod("c", 95))
    store.relisted("Pod", backup, as_of=116)
    assert store.pods[Key("models", "a")].version == 160, (
        "one LIST alone may come from a server that is behind"
    )
    touched = store.relisted("Pod", backup, as_of=117)
    assert {key.name: found.version for key, found in store.pods.items()} == {"a": 90, "c": 95}
    assert touched == {Key("models", "chat")}
    # From now on the new history counts.
    store.apply("Pod", Key("models", "a"), pod("a", 118))
    assert store.pods[Key("models", "a")].version == 118
    store.relisted("Pod", (pod("a", 118),), as_of=130)
    assert set(store.pods) == {Key("models", "a")}


def test_who_was_deleted_after_the_backup_is_there_again() -> None:
    store = Store()
    store.relisted("Pod", (pod("a", 110),), as_of=150)
    store.apply("Pod", Key("models", "a"), None, "uid-a")
    for as_of in (120, 121):
        store.relisted("Pod", (pod("a", 110),), as_of=as_of)
    assert set(store.pods) == {Key("models", "a")}


def test_lists_that_go_on_forget_nothing() -> None:
    store = Store()
    for as_of in (150, 140, 151, 145, 152, 0, 153):
        store.relisted("Pod", (pod("a", 110),), as_of=as_of)
        store.apply("Pod", Key("models", "b"), pod("b", 200))
        assert set(store.pods) == {Key("models", "a"), Key("models", "b")}
