// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title The purchase event in the layouts that no document rules out
/// @dev Indexed or not, the event's first topic is the same, so one filter sees all three.
contract NothingIndexed {
    event VMPurchased(uint256 tokenId, address buyer, uint8 tier, uint16 durationDays, uint256 purchaseDate, uint256 totalCost);

    function purchase(uint256 tokenId, address buyer, uint8 tier, uint16 durationDays, uint256 totalCost) external {
        emit VMPurchased(tokenId, buyer, tier, durationDays, block.timestamp, totalCost);
    }
}

contract TokenIndexed {
    event VMPurchased(
        uint256 indexed tokenId, address buyer, uint8 tier, uint16 durationDays, uint256 purchaseDate, uint256 totalCost
    );

    function purchase(uint256 tokenId, address buyer, uint8 tier, uint16 durationDays, uint256 totalCost) external {
        emit VMPurchased(tokenId, buyer, tier, durationDays, block.timestamp, totalCost);
    }
}
