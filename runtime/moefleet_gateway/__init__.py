"""The gateway: Envoy carries the bytes, the picker in this package decides once a request which replica gets them.

Belongs here: Envoy's configuration (bootstrap.py, ads.py), the picker's servers (ext_proc.py and access_log.py
on streams.py; control.py, consumer.py), its sources (watching/, loads.py) and, pure, every decision (picking/). Does not belong
here: tokenizing, scaling, writing to Kubernetes. Start at server.py for the process, at picking/core.py for the logic.
"""
