# SPDX-License-Identifier: Apache-2.0
"""The data path of the TAP attach: binding of the C module, and the sessions of the link."""
