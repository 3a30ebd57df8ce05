#!/usr/bin/env python3
"""Requests an access token with Python's requests: TOKEN_API_KEY=lts_… get_token.py https://tokens.example.com/token appointment-42 alice

For the backend of an application, which may keep an API key (`livekit-token-service keygen` makes one)."""

import os
import sys

import requests


def get_token(endpoint, api_key, room, name, **more):
    """Returns the reply as a dictionary: `token`, `url`, `expires_at` and LiveKit's own names for them."""
    reply = requests.post(
        endpoint,
        json={"room_name": room, "participant_name": name, **more},
        headers={"Authorization": f"Bearer {api_key}"},
        timeout=10,
    )
    if not reply.ok:
        # the errors by field; never the key
        raise RuntimeError(f"no token: {reply.status_code} {reply.json().get('detail')}")
    return reply.json()


if __name__ == "__main__":
    print(get_token(sys.argv[1], os.environ["TOKEN_API_KEY"], *sys.argv[2:])["token"])
