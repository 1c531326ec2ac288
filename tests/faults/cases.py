"""The cases of docs/reliability.md: what is done to the server, and the tests that do it; and what holds by design.

A test named `test_A5_…` in this folder belongs to case A5 by its name; `elsewhere` names tests of other folders, by
file or as file::test. A case without tests says why.
"""

from __future__ import annotations

from dataclasses import dataclass

HTTP, LIFE, SERVED = "tests/server/test_http.py", "tests/server/test_life.py", "tests/server/test_end_to_end.py"
MATRIX = "tests/server/test_matrix.py"
RECOVERY, GATE = ("tests/server/test_recovery.py", "tests/engine/test_recovery.py"), "tests/engine/test_gate.py"
ISOLATION = "tests/engine/test_isolation.py"
MEDIA = "no such feature yet: the server takes text only"
RANKS = "no such feature yet: an engine is one process on one device"
ADAPTERS = "no such feature yet: adapters are not loaded"


@dataclass(frozen=True)
class Case:
    id: str
    text: str
    elsewhere: tuple[str, ...] = ()
    note: str = ""


def _at(file: str, *tests: str) -> tuple[str, ...]:
    return tuple(f"{file}::{test}" for test in tests)


CASES = (
    Case("A1", "Host and target that name a public route: never past the key", _at(HTTP, "test_no_way_around_the_key")),
    Case("A2", "Every route of the table, every method, no key: 401",
         _at(HTTP, "test_every_route_and_method_needs_the_key")),
    Case("A4", "Wrong keys: growing prefixes, a megabyte, not ASCII; the time tells nothing", _at(
         HTTP, "test_wrong_keys", "test_the_time_tells_nothing_about_a_key")),
    Case("A5", "A long header, many headers, a long target: 431, closed", _at(HTTP, "test_too_long_a_head")),
    Case("A6", "A thousand slow heads, a slow body: closed, others served", _at(HTTP, "test_slow_heads_and_bodies")),
    Case("A7", "10 GB declared, an endless body, a compressed one: 413, 415", _at(HTTP, "test_an_endless_body")),
    Case("A8", "Request smuggling: two lengths, length and chunks, folds, bare line feeds: 400, closed"),
    Case("A9", "JSON that is none, too deep, too long, infinite, half a character: 400, never 500",
         ("tests/server/test_requests.py::test_not_a_json_object",)),
    Case("A11", "Request ids and paths that would forge a line of the log", _at(HTTP, "test_ids_that_are_not_echoed")),
    Case("A13", "Web pages, DNS rebinding; the operator's socket is not on the port",
         ("tests/server/test_origins.py", "tests/server/test_admin.py")),
    Case("A14", "All bodies together; trailers, pipelines, offers of other protocols; connections half closed, bodies "
         "that nobody reads",
         ("tests/server/test_bodies.py", *_at(HTTP, "test_offers_of_other_protocols_are_ignored",
         "test_what_is_no_offer", "test_trailers_are_no_headers", "test_endless_trailers",
         "test_a_body_that_nobody_reads", "test_a_client_that_pipelines_and_leaves",
         "test_a_client_that_closes_its_sending_side_has_left", "test_too_many_pipelined"))),
    Case("B1", "n beyond its cap, or none", (MATRIX, "tests/server/test_requests.py::test_bad_values")),
    Case("B2", "best_of below n, or without bound; beams as wide",
         (MATRIX, "tests/server/test_requests.py::test_bad_values")),
    Case("B3", "Prompts: too many, empty, mixed",
         ("tests/server/test_requests.py::test_bad_prompts", "tests/server/test_pooling.py::test_wrong_input")),
    Case("B5", "Sampling parameters out of range, NaN, infinite", _at(MATRIX, "test_wrong_numbers",
         "test_wrong_numbers_in_a_batch", "test_wrong_numbers_offline")),
    Case("B7", "Limits on length that cannot be", _at(MATRIX, "test_lengths_at_the_limits")),
    Case("B8", "Logprobs beyond what they may cost", _at(MATRIX, "test_logprobs_are_paid_for",
         "test_what_is_reserved")),
    Case("B9", "Prompt logprobs of a cached prompt, in chunks", _at(ISOLATION, "test_logprobs_of_a_cached_prompt")),
    Case("B11", "Stop strings: too many, too long, empty, none", ("tests/server/test_requests.py::test_bad_values",)),
    Case("B13", "Prompts of the whole context and one more; more than the cache holds",
         ("tests/server/test_requests.py::test_more_than_the_cache_holds",)),
    Case("B14", "Penalties with every kind of speculation", note="no such feature yet: speculation"),
    Case("B15", "Prompt embeddings", note="refused: they are not taken"),
    Case("B16", "Cache salts that are none", _at(MATRIX, "test_wrong_salts_offline")),
    Case("B17", "Internal fields from clients",
         ("tests/server/test_requests.py::test_no_feature_is_dropped_in_silence",)),
    Case("C1", "Chat templates of clients, on every route that has chats: 400"),
    Case("C2", "Templates that loop, grow, reach for Python", ("tests/text/test_sandbox.py",
         "tests/text/test_renderer.py"), "only a model's own template or --chat-template is rendered"),
    Case("C4", "Schemas: unknown types, circles, 20,000 properties, depth, sizes", ("tests/grammar/test_checker.py",)),
    Case("C5", "Regexes and schemas without end: killed after 2 s, 400", ("tests/server/test_structured.py::"
         "test_a_hostile_grammar_harms_nobody",)),
    Case("C6", "Grammars: 60,000 nested groups, left recursion, unknown rules"),
    Case("C8", "64 requests at once, half of them with a grammar"),
    Case("C9", "Answers that parsers could choke on", ("tests/text/parsing/test_parsers.py",)),
    *(Case(f"D{i}", text, note=MEDIA) for i, text in enumerate((
        "Addresses of private networks", "Addresses that parsers read differently", "Redirections and rebinding",
        "The same on every route", "Bodies without end", "Ten thousand images", "Images of hostile size",
        "Malformed images", "Audio and video of hostile length", "Keyword arguments of processors",
        "Equal bytes, other meaning", "Files of the server", "Embeddings of images",
    ), 1)),
    Case("E1", "Adapters from strange places", note=ADAPTERS),
    Case("E2", "Weights whose header lies, quantised ones and GGUF among them", (
         "tests/models/test_loader.py::test_corrupt_files", "tests/quant/test_gguf.py::test_cut_anywhere",
         "tests/quant/test_gguf.py::test_wrong_headers", *_at("tests/models/test_gguf_file.py", "test_refusals",
         "test_wrong_numbers", "test_wrong_vocabularies", "test_a_file_that_is_none"),
         *_at("tests/quant/test_checkpoints.py", "test_missing_and_left_over", "test_refused"))),
    Case("E4", "A model with Python files, pickles, a hostile template, in its own folder, under python -O",
         ("tests/test_security.py", "tests/text/test_tokenizer.py::test_code_in_the_folder_is_not_run")),
    Case("E5", "A pinned revision whose files changed", ("tests/core/test_hub.py",)),
    Case("E6", "Who listens: the port of the API and the operator's socket"),
    Case("E7", "Random frames to what decodes the processes' messages", note="the socket pairs have no name to open"),
    Case("E8", "Handles of shared memory from clients", note="none are taken from outside: the pairs pass descriptors"),
    Case("E9", "Metrics, models, version, log: no prompts, keys, paths", ("tests/server/test_metrics.py::"
         "test_labels_come_from_closed_sets",)),
    Case("E10", "Files and batches: malformed forms, a million lines, uploads at once, cancelled twice",
         ("tests/server/test_batch.py",)),
    Case("F1", "Foreign or stale KV: every read checks a stamp", ("tests/scheduler/test_model.py",)),
    Case("F2", "State of a slot that another request left", _at(ISOLATION, "test_nothing_of_a_row_outlives_it",
         "test_poison")),
    Case("F4", "Prefix hashes: 128 bits under a key of the process", ("tests/scheduler/test_scheduler.py::"
         "test_salts_do_not_share",)),
    Case("F5", "Two keys never share a cached prefix", _at(HTTP, "test_keys_part_their_caches")),
    Case("F6", "Responses of another key", ("tests/server/test_responses.py::test_another_key_s_responses",
         "tests/server/test_responses.py::test_the_store_is_bounded")),
    Case("F7", "A block is a hit only after its step", ("tests/scheduler/test_scheduler.py::"
         "test_a_block_is_a_hit_only_after_its_step_has_ended",)),
    Case("G1", "Engine, matcher, checker, front are killed under 200 streams: what can go on goes on, others end",
         (*_at(SERVED, "test_a_killed_engine_is_started_again"), *RECOVERY)),
    Case("G2", "Each process is frozen under 200 streams; an engine that hangs", _at(
         RECOVERY[1], "test_an_engine_that_is_frozen",
         "test_an_engine_that_spins_tells_where", "test_an_engine_that_hangs_while_it_loads")),
    Case("G3", "A long step that says so: ready all the while", ("tests/core/test_progress.py",
         *_at(RECOVERY[1], "test_a_long_step_that_says_so"))),
    Case("G4", "The server is killed, also while it loads: no engine is left; its supervisor starts it again", (
         *_at(SERVED, "test_a_killed_server_leaves_no_engine"),
         "tests/test_supervisor.py::test_a_parent_that_died_first", *_at(RECOVERY[0],
         "test_nothing_outlives_the_supervisor", "test_a_front_that_is_killed_takes_its_engine_along_and_comes_back"))),
    Case("G5", "A rank dies", note=RANKS),
    Case("G6", "An exception in the engine's step is of its request; a request that always kills is refused",
         (*_at(ISOLATION, "test_a_fault_is_the_requests_own", "test_a_fault_that_passes"), GATE)),
    Case("G7", "Logits that are not finite", _at(ISOLATION, "test_logits_that_are_not_finite")),
    Case("G9", "Wrong flags, a port in use, a missing model: one line, no orphans",
         ("tests/server/test_serve.py::test_an_engine_that_cannot_start",
          "tests/server/test_serve.py::test_a_port_in_use_costs_no_model_load")),
    Case("G10", "An engine that dies again and again", _at(LIFE, "test_an_engine_that_dies_again_and_again")),
    Case("G11", "SIGTERM with streams and a queue; a second one; a terminal that closes", (*_at(LIFE, "test_drain",
         "test_a_drain_that_takes_too_long", "test_a_second_signal_ends_at_once",
         "test_kept_connections_end_with_an_answer"),
         "tests/test_supervisor.py::test_a_terminal_that_closes_may_say_so_twice"),
         "a second signal ends at once, with status 1: answers were cut"),
    Case("G12", "Replicas are replaced one after the other under 50 requests a second: none fails",
         ("tests/server/test_rolling.py",)),
    Case("G13", "No room on the disk, no descriptors, a clock that jumps; standard streams closed or not read", (
         *_at("tests/server/test_batch.py", "test_a_disk_that_takes_nothing", "test_clocks_that_jump"),
         *_at("tests/server/test_serve.py", "test_nobody_reads_what_it_says",
         "test_standard_streams_that_are_closed")),
         "memory has no names in /dev/shm; the kernel's out-of-memory killer is G1; no name is looked up"),
    Case("G14", "Memory runs out in a step", _at(ISOLATION, "test_memory_that_runs_out")),
    Case("G15", "A node is lost", note=RANKS),
    Case("G16", "A data-parallel rank dies", note=RANKS),
    Case("H1", "Requests of all kinds, 30 % of them leave at any moment: nothing is left",
         ("tests/engine/test_async.py::test_ten_thousand_requests_with_aborts_leave_nothing",)),
    Case("H2", "Storms of preemption: equal answers", ("tests/scheduler/test_scheduler.py::"
         "test_the_last_in_order_is_preempted_and_its_answer_is_the_same",)),
    Case("H3", "A large request among small ones is not starved", ("tests/scheduler/test_scheduler.py::"
         "test_a_large_request_does_not_block_the_queue_and_is_not_starved",)),
    Case("H5", "A peer that never sends its KV", note="no such feature yet: KV stays in one engine"),
    Case("H6", "A full queue: refused before the body is read", ("tests/server/test_overload.py",)),
    Case("H7", "Deadlines and limits on waiting", ("tests/server/test_parameters.py::test_a_deadline",)),
    Case("H8", "Random walks of scheduler and cache", ("tests/scheduler/test_model.py",)),
    Case("I1", "Clients that stop reading: bounded memory, dropped after 30 s",
         _at(LIFE, "test_a_client_that_does_not_read_is_dropped")),
    Case("I3", "Characters in pieces, bytes that are no text", ("tests/text/test_detokenizer.py",)),
    Case("I5", "Stop strings over tokens and characters", ("tests/text/test_detokenizer.py::"
         "test_stop_strings_equal_a_search_of_the_whole",)),
    Case("I7", "The engine dies in a stream: an error, no [DONE]",
         _at(LIFE, "test_the_openai_client_raises_when_a_stream_breaks")),
    Case("I8", "Many streams and idle connections", _at(LIFE, "test_two_hundred_streams_at_once")),
)  # fmt: skip

SECURITY, SERVE = "tests/test_security.py", "tests/server/test_serve.py"
PROPERTIES = (
    Case("S1", "Nothing unpickles, evaluates or executes: our code is read for it, serving processes refuse it",
         _at(SECURITY, "test_nothing_runs_what_it_reads", "test_the_gate_sees_them", "test_serving_processes_refuse",
         "test_libraries_go_on")),
    Case("S2", "Processes speak msgpack of fixed schemas over socket pairs without a name; the operator's is private",
         ("tests/faults/test_models.py::test_E6_who_listens", "tests/faults/test_models.py::test_E7_random_frames")),
    Case("S3", "A key for every route that was matched, but for those of health and the console's pages",
         (*_at(HTTP, "test_every_route_and_method_needs_the_key", "test_no_way_around_the_key"),
          "tests/server/test_admin.py")),
    Case("S4", "One constructor checks every request, of every route and of the offline API", (MATRIX,)),
    Case("S5", "What a request may cost is reserved before any work", (*_at(MATRIX, "test_logprobs_are_paid_for",
         "test_what_is_reserved"), "tests/server/test_overload.py", "tests/server/test_bodies.py")),
    Case("S6", "Grammars are compiled and followed, and chats rendered, in processes that can be killed, with bounded "
         "memory", ("tests/grammar/test_checker.py", "tests/text/test_sandbox.py", "tests/text/test_renderer.py"),
         "clients' templates are refused; offline, in a process of the user's own, a model's has its budget only"),
    Case("S7", "A fault of the host's code is of its request", _at(ISOLATION, "test_a_fault_is_the_requests_own",
         "test_a_fault_that_passes")),
    Case("S8", "Ids are ours, random, of 122 bits; those of clients are only echoed", (
         *_at(HTTP, "test_ids_that_are_not_echoed"), "tests/server/test_responses.py::test_another_key_s_responses")),
    Case("S9", "One function clears what a row leaves; debugging poisons freed rows and blocks", _at(ISOLATION,
         "test_nothing_of_a_row_outlives_it", "test_poison")),
    Case("S10", "Prefixes are hashed with 128 bits under a key of the process, with their salt", (
         "tests/scheduler/test_scheduler.py::test_salts_do_not_share",)),
    Case("S11", "Keys never share a prefix", _at(HTTP, "test_keys_part_their_caches")),
    Case("S12", "Nothing is fetched for a client", note="there is no code that could; pictures and files by "
         "address are refused"),
    Case("S13", "Nothing of a model is imported", ("tests/text/test_tokenizer.py::test_code_in_the_folder_is_not_run",
         "tests/faults/test_models.py::test_E4_code_in_a_model", "tests/core/test_hub.py",
         f"{SECURITY}::test_children_take_no_module_from_the_current_folder")),
    Case("S14", "No check is an assert, and no assert does more than check", (
         *_at(SECURITY, "test_no_security_check_is_an_assert", "test_asserts_do_nothing_that_others_need"),
         "tests/test_optimized.py"), "the whole suite also runs by `PYTHONOPTIMIZE=1 scripts/test`"),
    Case("S15", "Errors come from one catalogue; no exception's text reaches a client", _at(SECURITY,
         "test_no_exception_is_formatted_into_an_answer", "test_the_leaks_are_seen")),
    Case("S16", "Logs are escaped, without prompts and keys; labels of metrics come from closed sets", (
         "tests/core/test_log.py", "tests/server/test_metrics.py::test_labels_come_from_closed_sets",
         "tests/faults/test_models.py::test_E9_what_is_told_about_the_server")),
    Case("S17", "Loopback unless told otherwise; an open address needs a key", _at(SERVE,
         "test_an_open_address_needs_a_key")),
    Case("S18", "What a model writes is data", ("tests/text/parsing/test_parsers.py",)),
    Case("S19", "Supply", note="versions are pinned in constraints.txt, without hashes; nothing is signed yet"),
    Case("S20", "No variable of the environment opens a route", _at(SERVE, "test_no_variable_opens_a_route")),
)  # fmt: skip
