"""The loop of a client program in Python: an operation a line in, what came of it a line out."""

import json
import sys


def serve(operations):
    """Answers until the tests close our input. What an operation raises is its answer, too."""
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = operations[asked["do"]](asked)
        except Exception as error:  # whatever a library raises is what the tests look at
            answer = {
                # With those above it: LangChain's own classes are subclasses of the OpenAI SDK's.
                "error": [kind.__name__ for kind in type(error).__mro__],
                "status": getattr(error, "status_code", None),
                "message": str(error),
            }
        print(json.dumps(answer), flush=True)
