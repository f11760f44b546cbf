"""Stages in several processes: what travels between them, who may send it, and how the head drives them.

head.py        the head's side: its own layers, a link to every other stage, batches out and results in
stage.py       the other stages' side: obeys one head, computes what the stage before sends, hands it on
listener.py    lets in who knows the replica's secret (handshake.py)
link.py        one connection: frames (frames.py) with messages (messages.py) and rows
"""
