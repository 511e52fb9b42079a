"""Grammars of the three doors' streams: what events come in which order, with which ids and indices.

`read_chat`, `read_response` and `read_message` take a stream's events, check every one and return the whole answer as they
add it up; the last two check that it is the one that the stream itself tells at its end. `Wrong` says what is not so.
"""

import http.client
import json
import urllib.parse


class Wrong(Exception):
    pass


def expect(truth, what, *values):
    if not truth:
        raise Wrong(what + "".join(f" | {json.dumps(v, ensure_ascii=False)[:600]}" for v in values))


def post(url, path, body, key):
    """Status and body of an answer; a stream's as a list of (event, data), where data is JSON or "[DONE]"."""
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=120)
    try:
        connection.request("POST", path, json.dumps(body).encode(), {
            "Content-Type": "application/json", "Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        data = answer.read().decode()
        if not answer.headers["Content-Type"].startswith("text/event-stream"):
            return answer.status, json.loads(data)
        return answer.status, list(events(data))
    finally:
        connection.close()


def events(text):
    for block in text.split("\n\n"):
        name, data = None, []
        for line in block.splitlines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                data.append(line[6:])
            else:
                expect(line.startswith(":") or not line, "a line that is neither event nor data", line)
        if data:
            text = "\n".join(data)
            yield name, text if text == "[DONE]" else json.loads(text)


def read_chat(stream):
    """Chunks of one choice: {"content", "reasoning", "calls": [[name, arguments]], "finish_reason", "usage"}."""
    expect(stream and stream[-1] == (None, "[DONE]"), "no [DONE] at the end", stream[-1:])
    chunks = [chunk for _, chunk in stream[:-1]]
    answer = {"content": "", "reasoning": "", "calls": [], "finish_reason": None, "usage": None}
    ids = set()
    for i, chunk in enumerate(chunks):
        expect(chunk["object"] == "chat.completion.chunk", "object", chunk)
        same = ("id", "created", "model", "system_fingerprint")
        expect([chunk[k] for k in same] == [chunks[0][k] for k in same], "chunks differ", chunk)
        if not chunk["choices"]:
            expect(i == len(chunks) - 1 and chunk["usage"], "an empty chunk that is not the usage", chunk)
            answer["usage"] = chunk["usage"]
            continue
        expect(answer["finish_reason"] is None, "a delta behind the end", chunk)
        (choice,) = chunk["choices"]
        delta = choice["delta"]
        expect(choice["index"] == 0, "index", chunk)
        expect((delta.get("role") == "assistant") == (i == 0), "the role comes once, first", chunk)
        answer["content"] += delta.get("content") or ""
        answer["reasoning"] += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls") or []:
            if "id" in call:
                expect(call["index"] == len(answer["calls"]), "index of a new call", call)
                expect(call["type"] == "function" and call["id"] not in ids, "a call's head", call)
                ids.add(call["id"])
                answer["calls"].append([call["function"]["name"], ""])
            else:
                expect(call["index"] == len(answer["calls"]) - 1, "index of a call", call)
                expect(set(call["function"]) == {"arguments"}, "more than arguments", call)
            answer["calls"][-1][1] += call["function"].get("arguments") or ""
        answer["finish_reason"] = choice["finish_reason"]
    expect(answer["finish_reason"], "no finish_reason", chunks[-1:])
    return answer


def read_response(stream):
    """Events of /v1/responses: the response of the last one."""
    expect([name for name, _ in stream] == [data["type"] for _, data in stream],
           "events have other names than types")
    todo = [data for _, data in stream]
    for i, event in enumerate(todo):
        expect(event["sequence_number"] == i, f"sequence_number is not {i}", event)

    def take(type, *keys):
        expect(todo, f"the stream ends before {type}")
        event = todo.pop(0)
        expect(event["type"] == type, f"instead of {type}", event)
        expect(set(event) == {"type", "sequence_number", *keys}, f"{type} has other fields", event)
        return event

    first = take("response.created", "response")["response"]
    expect(first["status"] == "in_progress" and first["output"] == [] and first["usage"] is None,
           "response.created", first)
    expect(take("response.in_progress", "response")["response"] == first, "response.in_progress")
    output, ids = [], {first["id"]}
    while todo and todo[0]["type"] == "response.output_item.added":
        added = take("response.output_item.added", "output_index", "item")
        item = added["item"]
        place = {"item_id": item["id"], "output_index": len(output)}
        expect(added["output_index"] == len(output), "output_index", added)
        expect(item["id"] not in ids, "an id comes twice", added)
        ids.add(item["id"])

        def take_here(type, *keys, **where):
            event = take(type, *place, *where, *keys)
            expect({k: event[k] for k in (*place, *where)} == {**place, **where}, "place", event)
            return event

        def take_deltas(kind, *keys, **where):
            text = ""
            while todo and todo[0]["type"] == f"response.{kind}.delta":
                piece = take_here(f"response.{kind}.delta", "delta", *keys, **where)["delta"]
                expect(piece, "an empty delta", item)
                text += piece
            return text

        if item["type"] == "function_call":
            expect(item["arguments"] == "" and item["status"] == "in_progress", "a call's begin", item)
            expect(item["call_id"] and item["call_id"] not in ids, "call_id", item)
            ids.add(item["call_id"])
            text = take_deltas("function_call_arguments")
            done = take_here("response.function_call_arguments.done", "name", "arguments")
            expect(done["arguments"] == text and done["name"] == item["name"], "arguments", done)
            whole = {**item, "arguments": text}
        else:
            kind = {"message": "output_text", "reasoning": "reasoning_text"}[item["type"]]
            more = ("logprobs",) if kind == "output_text" else ()
            expect(item["content"] == [], "an item begins without content", item)
            part = take_here("response.content_part.added", "part", content_index=0)["part"]
            expect(part["type"] == kind and part["text"] == "", "a part's begin", part)
            text = take_deltas(kind, *more, content_index=0)
            expect(text, "an item that says nothing", item)
            done = take_here(f"response.{kind}.done", "text", *more, content_index=0)
            expect(done["text"] == text, "the text is not what its deltas are", done)
            done = take_here("response.content_part.done", "part", content_index=0)
            expect(done["part"] == {**part, "text": text}, "the part is not what its deltas are", done)
            whole = {**item, "content": [done["part"]]}
        done = take("response.output_item.done", "output_index", "item")
        expect(done["output_index"] == len(output), "output_index", done)
        last = not todo or todo[0]["type"] == "response.incomplete"
        if "status" in item:
            whole["status"] = "incomplete" if last else "completed"
        expect(done["item"] == whole, "the item is not what its events are", done["item"], whole)
        output.append(whole)
    expect(len(todo) == 1, "one event at the end", todo)
    final = todo[0]["response"]
    check_response(final)
    expect(todo[0]["type"] == f"response.{final['status']}", "the last event's name", todo[0])
    expect(final["output"] == output, "the response is not what its events are", final["output"], output)
    changes = ("status", "output", "usage", "incomplete_details")
    expect({k: v for k, v in final.items() if k not in changes}
           == {k: v for k, v in first.items() if k not in changes}, "the response has changed", final)
    return final


def check_response(final):
    """What holds of any whole response."""
    incomplete = {"reason": "max_output_tokens"} if final["status"] == "incomplete" else None
    expect(final["object"] == "response" and final["status"] in ("completed", "incomplete"), "status", final)
    expect(final["incomplete_details"] == incomplete, "incomplete_details", final)
    expect(final["error"] is None and final["id"].startswith("resp_"), "error or id", final)
    usage = final["usage"]
    expect(usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"], "usage", usage)
    details = usage["output_tokens_details"]["reasoning_tokens"]
    expect(0 <= details <= usage["output_tokens"] and usage["output_tokens"] > 0, "usage", usage)
    expect(0 <= usage["input_tokens_details"]["cached_tokens"] < usage["input_tokens"], "usage", usage)
    ids = [item["id"] for item in final["output"]]
    expect(len(ids) == len(set(ids)), "ids", final["output"])
    prefixes = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}
    for i, item in enumerate(final["output"]):
        expect(item["id"].startswith(prefixes[item["type"]]), "id", item)
        last = final["status"] == "incomplete" and i == len(final["output"]) - 1
        if "status" in item:
            expect(item["status"] == ("incomplete" if last else "completed"), "status", item)
        if item["type"] == "function_call" and item["status"] == "completed":
            expect(isinstance(json.loads(item["arguments"]), dict), "arguments", item)


def read_message(stream):
    """Events of /v1/messages: the message that they make."""
    expect([name for name, _ in stream] == [data["type"] for _, data in stream],
           "events have other names than types")
    todo = [data for _, data in stream if data["type"] != "ping"]

    def take(type, *keys):
        expect(todo, f"the stream ends before {type}")
        event = todo.pop(0)
        expect(event["type"] == type, f"instead of {type}", event)
        expect(set(event) == {"type", *keys}, f"{type} has other fields", event)
        return event

    message = take("message_start", "message")["message"]
    expect(message["content"] == [] and message["stop_reason"] is None, "message_start", message)
    while todo and todo[0]["type"] == "content_block_start":
        event = take("content_block_start", "index", "content_block")
        index, block = len(message["content"]), event["content_block"]
        expect(event["index"] == index, "index", event)
        field, delta_type = {"text": ("text", "text_delta"), "thinking": ("thinking", "thinking_delta"),
                             "tool_use": ("partial_json", "input_json_delta")}[block["type"]]
        expect(not block.get(field) and not block.get("input"), "a block begins empty", block)
        text = ""
        while todo[0]["type"] == "content_block_delta" and todo[0]["delta"]["type"] == delta_type:
            event = take("content_block_delta", "index", "delta")
            expect(event["index"] == index and set(event["delta"]) == {"type", field}, "delta", event)
            expect(event["delta"][field], "an empty delta", event)
            text += event["delta"][field]
        if block["type"] == "tool_use":
            message["content"].append({**block, "input": input_of(text)})
        else:
            expect(text, "a block that says nothing", block)
            message["content"].append({**block, field: text})
        if block["type"] == "thinking":
            event = take("content_block_delta", "index", "delta")
            expect(event["delta"] == {"type": "signature_delta", "signature": ""}, "signature", event)
        expect(take("content_block_stop", "index")["index"] == index, "index of the stop", block)
    delta = take("message_delta", "delta", "usage")
    take("message_stop")
    expect(not todo, "events behind message_stop", todo)
    expect(set(delta["delta"]) == {"stop_reason", "stop_sequence"}, "message_delta", delta)
    for key in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
        expect(delta["usage"][key] >= 0, "usage", delta)
    message |= delta["delta"] | {"usage": delta["usage"]}
    check_message(message)
    return message


def input_of(arguments):
    try:
        return json.loads(arguments or "{}")
    except json.JSONDecodeError:
        return {"invalid_json": arguments}


def check_message(message):
    """What holds of any whole message."""
    expect(set(message) == {"id", "type", "role", "model", "content", "stop_reason", "stop_sequence",
                            "usage"}, "fields", message)
    expect(message["type"] == "message" and message["role"] == "assistant", "type or role", message)
    expect(message["id"].startswith("msg_"), "id", message)
    reason = message["stop_reason"]
    expect(reason in ("end_turn", "max_tokens", "stop_sequence", "tool_use"), "stop_reason", message)
    expect((message["stop_sequence"] is not None) == (reason == "stop_sequence"), "stop_sequence", message)
    calls = [block for block in message["content"] if block["type"] == "tool_use"]
    expect(reason == "max_tokens" or bool(calls) == (reason == "tool_use"), "calls", message)
    ids = [call["id"] for call in calls]
    expect(len(ids) == len(set(ids)) and all(
        i.startswith(("toolu_", "functions.")) for i in ids), "ids", message)
    expect(message["usage"]["output_tokens"] > 0, "usage", message)
