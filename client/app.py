"""The ClientApp that Flower starts for a message: a thin shim over ``client.site.Site``.

At an enrolled site it hands the message to the site's worker and returns what that lets out, so that code which the
server pushed never touches the site's data. Otherwise, as in a simulation, the work is done in this process.
Importing this module imports next to nothing: Flower starts a process for every message.
"""

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

SOCKET, SOCKET_KEY = "site-socket", "site-socket-key"
"""Node config keys: absolute paths of the worker's socket, and of the file with the key that it asks for."""

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Adapt to an episode of the site and reply with the update."""
    return answer(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judge adaptation on the site, before and after."""
    return answer(message, context)


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Say who the site is and what it has."""
    return answer(message, context)


@app.query("class_table")
def class_table(message: Message, context: Context) -> Message:
    """Reply with sums of embeddings by class name, if the site's settings allow it."""
    return answer(message, context)


@app.query("gate")
def gate(message: Message, context: Context) -> Message:
    """Reply with figures: how two models do on what the site holds back."""
    return answer(message, context)


def answer(message: Message, context: Context) -> Message:
    """Reply with what the door let out: the worker's door, or the one in this process."""
    node = context.node_config
    if SOCKET in node:
        from client.worker.wire import forward

        return reply(forward(message, context, str(node[SOCKET]), str(node.get(SOCKET_KEY, ""))), message)
    from client.worker.inside import work_inside

    return reply(work_inside(message, context), message)


def reply(content: RecordDict | Error, message: Message) -> Message:
    """Address what the door let out to who asked."""
    if isinstance(content, Error):
        return Message(content, reply_to=message)
    return Message(content, reply_to=message)
