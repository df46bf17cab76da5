/** AWS' own chain of credentials. A module by itself, loaded when keys are not given: of a CommonJS library a bundle imports names statically only. */
export { defaultProvider } from '@aws-sdk/credential-provider-node';
