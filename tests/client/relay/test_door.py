"""The second door, without a network."""

from typing import Any

import pytest
from flwr.app import Error, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import Node

from client.relay.door import SecondDoor, id_of, message_object
from common.deployment.forward import PREFIX, RefusedError
from common.errors import LedgerError
from tests.client.relay.site import NODE, asked, config, delivered, objects_of, pushed, reply_to

PUSH, OBJECT = f"{PREFIX}push-messages", f"{PREFIX}push-object"


class Entered:
    """A ledger that holds some content."""

    def __init__(self, *contents: RecordDict, fails: bool = False) -> None:
        self._objects = {name for content in contents for name in objects_of(content)}
        self._fails = fails

    def has_object(self, object_id: str, /) -> bool:
        if self._fails:
            raise LedgerError("the ledger cannot be read")
        return object_id in self._objects

    def has_error(self, sha256: str, /) -> bool:
        return False

    def may_run(self, fab: str, /) -> bool:
        return False


def door_of(ledger: Entered) -> SecondDoor:
    return SecondDoor("key", ledger, ledger)


def refused(door: SecondDoor, path: str, request: Any) -> tuple[int, str]:
    with pytest.raises(RefusedError) as raised:
        door.request(path, request.SerializeToString())
    return raised.value.status, raised.value.cause


def pushed_object(content: bytes) -> PushObjectRequest:
    node = Node(node_id=NODE)
    return PushObjectRequest(node=node, run_id=1, object_id=id_of(content), object_content=content, session_id="s")


ANSWER = config(b"update")


def test_the_object_of_a_message_is_made_as_flower_makes_it() -> None:
    for content in (ANSWER, Error(3, "no"), Error(0)):
        reply = reply_to(asked(), content)
        assert message_object(message_to_proto(reply), list(reply.children or {})) == reply.deflate()


def test_an_answer_leaves_unchanged_also_when_the_relay_has_not_seen_what_it_answers() -> None:
    reply = reply_to(asked(), ANSWER)
    for seen in (False, True):
        door = door_of(Entered(ANSWER))
        if seen:
            door.came(PullMessagesResponse.FromString(delivered(asked())))
        assert door.request(PUSH, pushed(reply).SerializeToString()) == pushed(reply)
        for content in objects_of(reply).values():
            assert door.request(OBJECT, pushed_object(content).SerializeToString()) == pushed_object(content)


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": 12},
        {"group_id": "patient Smith"},
        {"message_type": "train.smith"},
        {"dst_node_id": 5},
        {"src_node_id": 5},
    ],
)
def test_a_reply_is_addressed_as_its_message_says(change: dict[str, Any]) -> None:
    door, message = door_of(Entered(ANSWER)), asked()
    door.came(PullMessagesResponse.FromString(delivered(message)))
    reply = reply_to(message, ANSWER)
    for name, value in change.items():
        reply.metadata.__dict__[f"_{name}"] = value
    reply.metadata.__dict__["_message_id"] = reply.object_id
    assert refused(door, PUSH, pushed(reply)) == (403, "form")
    assert refused(door, OBJECT, pushed_object(reply.deflate())) == (403, "form")


@pytest.mark.parametrize("change", [{"reply_to_message_id": "Smith"}, {"group_id": "a b"}, {"message_type": "x" * 65}])
def test_a_reply_to_a_message_from_before_the_start_holds_no_free_text(change: dict[str, Any]) -> None:
    reply = reply_to(asked(), ANSWER)
    for name, value in change.items():
        reply.metadata.__dict__[f"_{name}"] = value
    reply.metadata.__dict__["_message_id"] = reply.object_id
    assert refused(door_of(Entered(ANSWER)), PUSH, pushed(reply)) == (403, "form")
    assert refused(door_of(Entered(ANSWER)), OBJECT, pushed_object(reply.deflate())) == (403, "form")


def test_two_messages_in_one_request_stay() -> None:
    one = pushed(reply_to(asked(), ANSWER))
    both = PushMessagesRequest(messages_list=[*one.messages_list] * 2, message_object_trees=one.message_object_trees)
    assert refused(door_of(Entered(ANSWER)), PUSH, both) == (403, "form")


def test_an_object_hidden_deep_in_the_tree_stays() -> None:
    request = pushed(reply_to(asked(), ANSWER))
    request.message_object_trees[0].children[0].children[0].children.add(object_id="cd" * 32)
    assert refused(door_of(Entered(ANSWER)), PUSH, request) == (403, "ledger")


def test_a_tree_without_end_stays() -> None:
    request = pushed(reply_to(asked(), ANSWER))
    tree = request.message_object_trees[0].children[0]
    for _ in range(20):
        tree = tree.children.add(object_id=next(iter(objects_of(ANSWER))))
    assert refused(door_of(Entered(ANSWER)), PUSH, request) == (403, "form")


def test_content_beside_the_objects_stays() -> None:
    request = pushed(reply_to(asked(), ANSWER))
    request.messages_list[0].content.items.add(key="smith")
    assert refused(door_of(Entered(ANSWER)), PUSH, request) == (403, "form")


def test_an_id_that_is_not_the_messages_own_stays() -> None:
    request = pushed(reply_to(asked(), ANSWER))
    request.messages_list[0].metadata.message_id = "cd" * 32
    assert refused(door_of(Entered(ANSWER)), PUSH, request) == (403, "form")
    request = pushed(reply_to(asked(), ANSWER))
    request.message_object_trees[0].CopyFrom(ObjectTree(object_id="cd" * 32, children=[]))
    assert refused(door_of(Entered(ANSWER)), PUSH, request) == (403, "form")


def test_a_message_object_with_content_that_the_ledger_does_not_have_stays() -> None:
    reply = reply_to(asked(), config(b"other"))
    assert refused(door_of(Entered(ANSWER)), OBJECT, pushed_object(reply.deflate())) == (403, "ledger")


def test_a_message_object_that_holds_more_than_flowers_stays() -> None:
    content = reply_to(asked(), ANSWER).deflate()
    head, _, body = content.partition(b"\0")
    longer = body + b"\xfa\x3e\x05smith"
    more = head.rpartition(b" ")[0] + f" {len(longer)}".encode() + b"\0" + longer
    assert refused(door_of(Entered(ANSWER)), OBJECT, pushed_object(more)) == (403, "form")
    wrong_length = head + b"0\0" + body
    assert refused(door_of(Entered(ANSWER)), OBJECT, pushed_object(wrong_length)) == (403, "form")
    inside = MessageProto.FromString(body)
    inside.content.items.add(key="smith")
    data = inside.SerializeToString(deterministic=True)
    with_content = head.rpartition(b" ")[0] + f" {len(data)}".encode() + b"\0" + data
    assert refused(door_of(Entered(ANSWER)), OBJECT, pushed_object(with_content)) == (403, "form")


def test_a_long_error_text_in_an_object_stays() -> None:
    reply = reply_to(asked(), Error(2, "x" * 5000))
    assert refused(door_of(Entered()), OBJECT, pushed_object(reply.deflate())) == (403, "ledger")


@pytest.mark.parametrize(
    "content", [b"", b"Message", b"Message  0\0", b"Array  3\0abc", b"\xff\xfe \0", b"Message a 1\0x"]
)
def test_any_other_bytes_stay(content: bytes) -> None:
    assert refused(door_of(Entered()), OBJECT, pushed_object(content))[0] in (400, 403)


def test_an_error_code_of_nobodys_is_not_told() -> None:
    reply = reply_to(asked(), Error(31415926, "x"))
    found = door_of(Entered()).request(PUSH, pushed(reply).SerializeToString())
    assert isinstance(found, PushMessagesRequest) and found.messages_list[0].error.code == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_times_are_numbers(value: float) -> None:
    message = asked()
    reply = reply_to(message, ANSWER)
    reply.metadata.__dict__["_ttl"] = value
    reply.metadata.__dict__["_message_id"] = reply.object_id
    assert refused(door_of(Entered(ANSWER)), PUSH, pushed(reply)) == (403, "form")
    request = pushed(reply_to(message, ANSWER))
    request.clientapp_runtime_list[0] = value
    assert refused(door_of(Entered(ANSWER)), PUSH, request) == (403, "form")


def test_while_the_ledger_cannot_be_read_supernode_keeps_its_answer() -> None:
    content = objects_of(ANSWER).popitem()[1]
    assert refused(door_of(Entered(fails=True)), OBJECT, pushed_object(content)) == (503, "ledger")


def test_names_of_objects_and_runs_hold_no_free_text() -> None:
    door = door_of(Entered())
    assert refused(door, f"{PREFIX}pull-object", PullObjectRequest(object_id="Smith")) == (403, "form")
    assert refused(door, f"{PREFIX}get-fab", GetFabRequest(hash_str="Smith")) == (403, "form")
    confirmed = ConfirmMessageReceivedRequest(message_object_id="Smith")
    assert refused(door, f"{PREFIX}confirm-message-received", confirmed) == (403, "form")
