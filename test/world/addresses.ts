/** Where our contracts are on Base, and so in the local world. */
export const CONTRACT_ADDRESS = "0xF708741D37C420518852c6A15aB658066951c852";
export const USDC_ADDRESS = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913";
export const MULTICALL3_ADDRESS = "0xcA11bde05977b3631167028862bE2a173976CA11";
