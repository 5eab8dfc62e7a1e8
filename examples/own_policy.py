"""A policy of your own in a few lines, run through the same machinery as the shipped ones.

swe run --policy examples.own_policy:ReadmeReader --tasks quickstart:heldout --out runs/mine
"""

from agents.policies import BasePolicy


class ReadmeReader(BasePolicy):
    """Looks at the folder, then gives up: resolves nothing, but shows every part of the seam."""

    def act(self, episode):
        if not episode.turns:
            return {"tool": "view", "arguments": {"path": ""}, "message": "Let me look around."}
        return {"tool": "submit", "arguments": {}}
