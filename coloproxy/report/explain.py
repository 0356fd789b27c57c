# SPDX-License-Identifier: Apache-2.0
"""Each cause of a difference or limit in words: what it means, what is usually behind it, what can be done."""

from __future__ import annotations

from dataclasses import dataclass

from coloproxy.events import Cause

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Sentences for people, without markup.

    Attributes:
        title: the cause in a few words.
        meaning: what the comparator saw.
        usual: what is usually behind it.
        remedy: what can be done.
    """

    title: str
    meaning: str
    usual: str
    remedy: str


_EXPLANATIONS = {
    Cause.NONE: Explanation(
        "no cause was told",
        "The comparator asked for a checkpoint without naming a cause.",
        "This should not happen.",
        "Please report it, with the captures.",
    ),
    Cause.PAYLOAD: Explanation(
        "the bytes differ",
        "Both sides sent payload at this place of the stream, and it is not the same.",
        "Something the guests don't share: the clock (an HTTP Date header, timestamps in log lines and pages), random "
        "numbers (TLS randoms and keys, session cookies, UUIDs, the salt of a handshake), process ids and memory "
        "addresses, threads that were scheduled in another order. TLS differs in every handshake: each guest draws "
        "its own random numbers.",
        "Differences of equal length at a known pattern, such as a Date header, can be tolerated. Anything that "
        "depends on random numbers needs a common source of them, a checkpoint, or a rule that does not compare this "
        "flow, at the price of R1 for it. See docs/rules.md.",
    ),
    Cause.FIN: Explanation(
        "one side ends the stream where the other goes on",
        "At this place of the stream one side has sent its FIN and the other a byte of payload.",
        "An answer of another length (a Content-Length that depends on the clock or a counter), a program that ended "
        "early, or an idle timeout that fired on one side first.",
        "Look at the last bytes of both sides below: the shorter one tells where they part. A capture that begins or "
        "ends in mid-stream can look like this too.",
    ),
    Cause.SYN_OPTIONS: Explanation(
        "options of the SYN differ",
        "MSS, window scale, SACK-permitted or the presence of timestamps is not the same on both sides (RFC 7323, "
        "RFC 2018). They bind the connection: a client that was told one can't live with the other.",
        "The guests' network settings differ (MTU, net.ipv4.tcp_* sysctls, socket buffer sizes, which decide on the "
        "window scale), or one kernel was under memory pressure or a SYN flood (SYN cookies give up options).",
        "Give both guests the same kernel, MTU and TCP settings.",
    ),
    Cause.DATAGRAM: Explanation(
        "a datagram of the primary has no equal",
        "The secondary went on to other output, and within the re-order window it did not send this datagram.",
        "Content that is the guest's own (DNS answers in another order, NTP, QUIC and other encrypted protocols, "
        "transaction ids and ports drawn at random), or a datagram that one side lost or never sent.",
        "If the two are the same but far apart, widen the re-order window. A protocol whose packets are random by "
        "design (QUIC, IPsec, WireGuard) can only pass by a rule, or differ.",
    ),
    Cause.RST: Explanation(
        "one side resets the connection",
        "One side sent an RST, the other goes on with the stream.",
        "A program that crashed or was not yet listening on one side, a close with unread data, a connection that "
        "one guest does not know, for it was set up before the capture or the last checkpoint.",
        "Look at the history for what came before the RST, and at that guest's log.",
    ),
    Cause.MID_STREAM: Explanation(
        "bytes before the first ones met",
        "The primary sent bytes that lie before the place at which its flow was first met. No commit is known to "
        "cover them, so they wait.",
        "The capture begins in the middle of a connection, and a segment that was lost before came again; or the "
        "flow was evicted from a full table.",
        "Begin the capture before the connection does, or take it that this connection can't be judged.",
    ),
    Cause.PRIMARY_TIMEOUT: Explanation(
        "the secondary never sent this",
        "A frame of the primary waited longer than the compare timeout, and the secondary did not send its equal.",
        "The secondary is slower than the primary or stands still, its capture ends earlier or lost packets (see what "
        "the capturing program says of drops), an inbound frame did not reach it, or its TCP lost a segment and waits "
        "for its retransmission.",
        "Compare the two lines of the progress plot: a secondary that follows late needs a longer --compare-timeout, "
        "one that stops needs its own log read.",
    ),
    Cause.SECONDARY_TIMEOUT: Explanation(
        "the primary never sent this",
        "The secondary sent something, and within the compare timeout the primary did not send its equal.",
        "The primary's capture ends earlier or lost packets, or the secondary does something of its own: its own "
        "background traffic (NTP, DNS, DHCP), or a retry after a time-out that the primary did not have.",
        "If it is background traffic of the guest, stop it there or let a rule pass it. Otherwise look at the history "
        "for the first place where only the secondary spoke.",
    ),
    Cause.ACK_TIMEOUT: Explanation(
        "the secondary has not acknowledged what the primary has",
        "The primary acknowledged bytes of the client that the secondary has not acknowledged within the compare "
        "timeout. A client throws away what was acknowledged, so this ACK may not leave.",
        "The secondary did not get the client's segments (mirror or link lost them, its receive window is full, its "
        "program does not read), or its capture lacks its ACKs.",
        "See in the history whether the inbound frames before this one were answered by both sides.",
    ),
    Cause.GAP: Explanation(
        "the secondary left out bytes",
        "The secondary has gone on in this stream beyond bytes of the primary's that it has not sent itself, and did "
        "not send them within the gap time-out.",
        "Its capture lost packets (see what the capturing program says of drops) or begins later, or its guest or its "
        "QEMU lost a segment, as it happens at a checkpoint, and TCP sends it again later.",
        "See in the history whether the secondary sent these bytes later on: then they were lost once, and a longer "
        "--gap-timeout waits for them.",
    ),
    Cause.CONFLICT: Explanation(
        "one side contradicts itself",
        "A frame overlaps an earlier one of the same side that still waits, and says otherwise there. Both pieces of "
        "evidence are that side's: on the left what came first, on the right what contradicts it.",
        "A faulty TCP stack or an attack (overlapping segments are an old way to deceive observers), damaged frames in "
        "the capture, or two connections of the same ports without their SYN.",
        "See in the history which side sent two frames for the same place, and look at that guest.",
    ),
    Cause.POLICY: Explanation(
        "a rule wants a checkpoint",
        "A rule of the rules file says that frames of this flow may leave by a commit only, so they are not compared.",
        "That is what the rule is for.",
        "Nothing is wrong. Change the rule if this flow should be compared.",
    ),
    Cause.LIMIT_FRAGMENTS: Explanation(
        "too many fragments wait",
        "The limit on fragments whose datagrams are not yet complete is reached.",
        "Fragments that were lost on the way or are missing from the capture, or a flood of lone fragments.",
        "See whether the capturing program dropped packets; avoid fragments by a common MTU.",
    ),
    Cause.LIMIT_FRAMES: Explanation(
        "too many frames wait",
        "The limit on the number of frames inside the comparator is (half) reached.",
        "One side is far ahead of the other, or the two captures don't cover the same time.",
        "Look for a difference before this one: what waits there fills the queue. No frame is lost by it.",
    ),
    Cause.LIMIT_BYTES: Explanation(
        "too many bytes wait",
        "The limit on the bytes inside the comparator is (half) reached.",
        "One side is far ahead of the other, or the two captures don't cover the same time.",
        "Look for a difference before this one: what waits there fills the queue. No frame is lost by it.",
    ),
    Cause.LIMIT_FLOWS: Explanation(
        "the flow table is full",
        "A frame belongs to a new flow, and no idle flow can make room for it.",
        "More live connections than the table has places for, or a flood of them.",
        "Raise --max-flows: an idle flow costs at most 512 bytes.",
    ),
    Cause.LIMIT_FLOW_FRAMES: Explanation(
        "too many frames of one flow wait",
        "One side of this flow is so far ahead that its limit of waiting frames is reached.",
        "One side stands still or is much slower, or its capture lacks the frames.",
        "See the progress plot for which; raise --max-queue-size if it is only slow.",
    ),
    Cause.LIMIT_FLOW_BYTES: Explanation(
        "too many bytes of one flow wait",
        "One side of this flow is so far ahead that its limit of waiting bytes is reached.",
        "One side stands still or is much slower, or its capture lacks the frames.",
        "See the progress plot for which; raise --max-flow-bytes if it is only slow.",
    ),
}


def explain(cause: Cause) -> Explanation:
    """What `cause` means. A cause that is newer than this table gets its name and a pointer to docs/events.md."""
    known = _EXPLANATIONS.get(cause)
    if known is not None:
        return known
    return Explanation(str(cause), "", "", "See docs/events.md.")
