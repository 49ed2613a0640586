"""The policy's network: declared parameter trees and plain functions on them."""
